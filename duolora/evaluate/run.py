"""Runs the truth suite: trains the LoRAs of every pair and seed, lets every method merge them, draws and scores.

What is done is on disk (LoRAs, scores), so a run that was cut off goes on where it was. Many pairs can share the
passes of the U-Net ("tenants"); none feels the others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from duolora.errors import TrainingDiverged
from duolora.evaluate.calling import Caller
from duolora.evaluate.host_pool import HostPool
from duolora.evaluate.jobs import Job, in_chunks, train_missing
from duolora.evaluate.methods import TRUTH, Knobs, Method
from duolora.evaluate.metrics import References, look, references, score
from duolora.evaluate.score_book import Entry, ScoreBook, knobs_word
from duolora.evaluate.truth_suite import JudgePictures, TruthPair, judge_pictures, picture_seed, write_pictures
from duolora.method.merge_case import SIDES
from duolora.recipes import resolve
from duolora.tiny.contact_sheet import to_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from duolora.config import PersonalizeConfig
    from duolora.evaluate.network import Evaluator
    from duolora.events import Observer
    from duolora.models.base import DiffusionBase

log = logging.getLogger(__name__)

PICTURES = 4
"""Pictures per prompt; each pair has two prompts."""
SHOWN_PAIRS = 6
"""Pairs whose pictures are kept to be looked at, with the first seed."""

# Legend: J jobs, n pictures of each (joint prompt, then recontextualised), H/W pixels.


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run: pairs, seeds 0 to `seeds - 1`, methods, how many pairs share a pass, and where everything goes.

    `recipe` decides how LoRAs are trained and pictures sampled, None for the base's own; `lora_steps` overrides it.
    `workers` is the number of processes for merges that need no GPU, None for as many as there are cores.
    """

    pairs: Sequence[TruthPair]
    seeds: int
    methods: Sequence[Method]
    tenants: int
    out: Path
    base_name: str
    recipe: str | None = None
    lora_steps: int | None = None
    workers: int | None = None

    def config(self, pair: TruthPair, seed: int) -> PersonalizeConfig:
        """Return the configuration of one pair and seed.

        Raises:
            InvalidConfig: the recipe is unknown.
        """
        steps = self.lora_steps
        return resolve(self.recipe, self.base_name, pair.prompts, content_steps=steps, style_steps=steps, seed=seed)

    def job(self, pair: TruthPair, seed: int) -> Job:
        """Draw the reference pictures of one pair and seed and return its job; its LoRAs may not be there yet."""
        references = self.references(pair, seed)
        loras = self.out / "loras" / str(seed) / pair.name
        return Job(
            pair=pair.name,
            seed=seed,
            config=self.config(pair, seed),
            pictures=write_pictures(pair, seed, references),
            loras={side: loras / f"{side}.safetensors" for side in SIDES},
        )

    def references(self, pair: TruthPair, seed: int) -> Path:
        """Return the folder of a pair's reference pictures."""
        return self.out / "references" / str(seed) / pair.name

    def kept_pictures(self, method: str, knobs: str, pair: TruthPair) -> Path:
        """Return the file of the kept pictures of a setting and a pair, side by side in the order they were drawn."""
        return self.out / "pictures" / method.replace(" ", "-") / knobs / f"{pair.name}.png"


def run_truth_suite(
    plan: Plan, base: DiffusionBase, evaluator: Evaluator, book: ScoreBook[Entry], observer: Observer | None = None
) -> None:
    """Fill the book with every method's scores on every pair and seed.

    Raises:
        InvalidConfig: the recipe is unknown.
        Cancelled, OutOfMemory: as in training. A rival's setting that diverges is logged and left out of the tables.
    """
    with HostPool(plan.workers) as pool:
        for seed in range(plan.seeds):
            for pairs in in_chunks(plan.pairs, plan.tenants):
                group = _Group(plan, pairs, seed, evaluator, Caller(base, pool))
                if group.is_done(book):
                    continue
                log.info("seed %d, %d pairs from %s", seed, len(pairs), pairs[0].name)
                log.info("%d LoRAs trained", train_missing(base, group.jobs, plan.tenants, observer))
                group.score_all(book)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Drawn:
    """Pictures of some jobs by one setting of a method, (J, 2 n, 3, H, W), and what they cost for each job."""

    method: str
    knobs: str
    jobs: Sequence[Job]
    rgb_Jn3HW: Tensor
    trainable: Sequence[int]
    seconds: float = 0.0
    sampling_seconds: float = 0.0


class _Group:
    """Pairs of one seed that share the passes of the U-Net."""

    def __init__(self, plan: Plan, pairs: Sequence[TruthPair], seed: int, evaluator: Evaluator, caller: Caller) -> None:
        self._plan, self._seed, self._evaluator, self._caller = plan, seed, evaluator, caller
        self._pairs = {pair.name: pair for pair in pairs}

    @cached_property
    def jobs(self) -> list[Job]:
        """The jobs of the group, their reference pictures on disk."""
        return [self._plan.job(pair, self._seed) for pair in self._pairs.values()]

    @cached_property
    def _judges(self) -> dict[str, JudgePictures]:
        return {name: judge_pictures(pair, self._seed, PICTURES) for name, pair in self._pairs.items()}

    @cached_property
    def _references(self) -> dict[str, References]:
        return {name: references(self._evaluator, judges) for name, judges in self._judges.items()}

    def is_done(self, book: ScoreBook[Entry]) -> bool:
        """Say whether nothing is left to score."""
        settings = [(TRUTH, {}), *((method.name, knobs) for method in self._plan.methods for knobs in method.grid)]
        return all(self._has(book, name, knobs, pair) for name, knobs in settings for pair in self._pairs)

    def score_all(self, book: ScoreBook[Entry]) -> None:
        """Score the truth and every setting of every method, as far as it is missing."""
        self._score_truth(book)
        for method in self._plan.methods:
            for knobs in method.grid:
                self._score_method(method, knobs, book)

    def _has(self, book: ScoreBook[Entry], method: str, knobs: Knobs, pair: str) -> bool:
        return (method, knobs_word(knobs), pair, self._seed) in book

    def _score_truth(self, book: ScoreBook[Entry]) -> None:
        """Score true pictures as if a method had drawn them: the ceiling of every column."""
        jobs = [job for job in self.jobs if not self._has(book, TRUTH, {}, job.pair)]
        if jobs:
            judges = [self._judges[job.pair] for job in jobs]
            rgb_Jn3HW = torch.stack([torch.cat([of.rival_truth, of.rival_grounded]) for of in judges])
            none = [0] * len(jobs)
            drawn = _Drawn(method=TRUTH, knobs=knobs_word({}), jobs=jobs, rgb_Jn3HW=rgb_Jn3HW, trainable=none)
            self._enter(drawn, book)

    def _score_method(self, method: Method, knobs: Knobs, book: ScoreBook[Entry]) -> None:
        """Let a method merge what is not scored yet, draw with the results and score the pictures."""
        jobs = [job for job in self.jobs if not self._has(book, method.name, knobs, job.pair)]
        if not jobs:
            return
        try:
            called = self._caller.call(method, knobs, jobs)
        except TrainingDiverged as error:
            log.warning("%s with %s diverged: %s", method.name, knobs_word(knobs), error)
            return
        prompts = [
            [job.config.prompts.joint] * PICTURES + [self._pairs[job.pair].recontext_prompt] * PICTURES for job in jobs
        ]
        # The same noise for every method: differences between methods are paired.
        seeds = [picture_seed(self._pairs[job.pair], self._seed, "noise", 0) for job in jobs]
        rgb_Jn3HW, sampling_seconds = self._caller.draw(called.made, prompts, jobs[0].config.preview, seeds)
        drawn = _Drawn(
            method=method.name,
            knobs=knobs_word(knobs),
            jobs=jobs,
            rgb_Jn3HW=rgb_Jn3HW,
            trainable=called.trainable,
            seconds=called.seconds,
            sampling_seconds=sampling_seconds,
        )
        entries = self._enter(drawn, book)
        mean = sum(entry.hmean for entry in entries) / len(entries)
        log.info("%s %s: %.3f over %d pairs", drawn.method, drawn.knobs, mean, len(entries))

    def _enter(self, drawn: _Drawn, book: ScoreBook[Entry]) -> list[Entry]:
        """Score pictures, write the entries, keep some pictures to be looked at."""
        device = next(self._evaluator.parameters()).device
        sight = look(self._evaluator, drawn.rgb_Jn3HW.flatten(0, 1).to(device))
        each = 2 * PICTURES
        entries = []
        for index, job in enumerate(drawn.jobs):
            to = self._references[job.pair]
            first, middle, end = index * each, index * each + PICTURES, (index + 1) * each
            entries.append(
                Entry(
                    method=drawn.method,
                    knobs=drawn.knobs,
                    pair=job.pair,
                    seed=self._seed,
                    joint=score(sight[first:middle], to),
                    recontext=score(sight[middle:end], to, grounded=True),
                    trainable=drawn.trainable[index],
                    seconds=drawn.seconds,
                    sampling_seconds=drawn.sampling_seconds,
                )
            )
        book.add(entries)
        self._keep_pictures(drawn)
        return entries

    def _keep_pictures(self, drawn: _Drawn) -> None:
        """Write the pictures of the pairs that the grid shows."""
        shown = {pair.name: pair for pair in self._plan.pairs[:SHOWN_PAIRS]}
        for job, rgb_n3HW in zip(drawn.jobs, drawn.rgb_Jn3HW, strict=True):
            if self._seed == 0 and job.pair in shown:
                path = self._plan.kept_pictures(drawn.method, drawn.knobs, shown[job.pair])
                path.parent.mkdir(parents=True, exist_ok=True)
                to_image(torch.cat(list(rgb_n3HW), dim=2)).save(path)
