"""Runs the truth suite: trains the LoRAs of every pair and seed, lets every method merge them, draws and scores.

What is done is on disk (LoRAs, scores), so a run that was cut off goes on where it was. Many pairs can share the
passes of the U-Net ("tenants"); none feels the others.

J tenants, n pictures of each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from duolora.errors import TrainingDiverged
from duolora.evaluate.host_pool import HostPool
from duolora.evaluate.methods import TRUTH, Kind, Knobs, Method
from duolora.evaluate.metrics import References, look, references, score
from duolora.evaluate.pair_loras import Job, Plan, make_job, merge_case, recipe_case, train_missing
from duolora.evaluate.score_book import Entry, ScoreBook, knobs_word
from duolora.evaluate.truth_suite import JudgePictures, TruthPair, judge_pictures, picture_seed
from duolora.generate import Attached, sample_tenants
from duolora.lora.weights import LoraWeights
from duolora.tiny.contact_sheet import to_image

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from duolora.evaluate.network import Evaluator
    from duolora.events import Observer
    from duolora.merge_case import MergeCase
    from duolora.models.sdxl import SdxlBase

Made = Sequence[LoraWeights] | Attached
"""What a method leaves: a LoRA for each job, or what samples them all."""

log = logging.getLogger(__name__)

PICTURES = 4
"""Pictures per prompt; each pair has two prompts."""
SHOWN_PAIRS = 6
"""Pairs whose pictures are kept to be looked at, with the first seed."""


def run_truth_suite(
    plan: Plan, base: SdxlBase, evaluator: Evaluator, book: ScoreBook[Entry], observer: Observer | None = None
) -> None:
    """Fill the book with every method's scores on every pair and seed.

    Raises:
        InvalidConfig: the recipe is unknown.
        Cancelled, OutOfMemory: as in training. A rival's setting that diverges is logged and left out of the tables.
    """
    with HostPool(plan.workers) as pool:
        for seed in range(plan.seeds):
            for start in range(0, len(plan.pairs), plan.tenants):
                jobs = [make_job(plan, pair, seed) for pair in plan.pairs[start : start + plan.tenants]]
                _Group(plan, base, evaluator, jobs, pool).run(book, observer)


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
    """Jobs that share the passes of the U-Net."""

    def __init__(self, plan: Plan, base: SdxlBase, evaluator: Evaluator, jobs: Sequence[Job], pool: HostPool) -> None:
        self._plan, self._base, self._evaluator, self._jobs, self._pool = plan, base, evaluator, jobs, pool

    def run(self, book: ScoreBook[Entry], observer: Observer | None) -> None:
        """Train, merge, draw and score what is missing."""
        if self._is_done(book):
            return
        log.info("seed %d, %d pairs from %s", self._jobs[0].seed, len(self._jobs), self._jobs[0].pair.name)
        log.info("%d pairs of LoRAs trained", train_missing(self._base, self._jobs, observer))
        self._score_truth(book)
        for method in self._plan.methods:
            for knobs in method.grid:
                self._score_method(method, knobs, book)

    @cached_property
    def _judges(self) -> list[JudgePictures]:
        return [judge_pictures(job.pair, job.seed, PICTURES) for job in self._jobs]

    @cached_property
    def _references(self) -> dict[str, References]:
        return {
            job.pair.name: references(self._evaluator, judges)
            for job, judges in zip(self._jobs, self._judges, strict=True)
        }

    @cached_property
    def _cases(self) -> dict[str, MergeCase]:
        return {job.pair.name: merge_case(self._base, job) for job in self._jobs}

    def _missing(self, method: str, knobs: Knobs, book: ScoreBook[Entry]) -> list[Job]:
        word = knobs_word(knobs)
        return [job for job in self._jobs if (method, word, job.pair.name, job.seed) not in book]

    def _is_done(self, book: ScoreBook[Entry]) -> bool:
        """Say whether nothing is left to score."""
        settings = [(TRUTH, {}), *((method.name, knobs) for method in self._plan.methods for knobs in method.grid)]
        return not any(self._missing(name, knobs, book) for name, knobs in settings)

    def _score_truth(self, book: ScoreBook[Entry]) -> None:
        """Score true pictures as if a method had drawn them: the ceiling of every column."""
        jobs = self._missing(TRUTH, {}, book)
        if jobs:
            rivals = [torch.cat([judges.rival_truth, judges.rival_grounded]) for judges in self._judges]
            rgb_Jn3HW = torch.stack([rgb for job, rgb in zip(self._jobs, rivals, strict=True) if job in jobs])
            none = [0] * len(jobs)
            self._enter(
                _Drawn(method=TRUTH, knobs=knobs_word({}), jobs=jobs, rgb_Jn3HW=rgb_Jn3HW, trainable=none), book
            )

    def _score_method(self, method: Method, knobs: Knobs, book: ScoreBook[Entry]) -> None:
        """Let a method merge what is not scored yet, draw with the results and score the pictures."""
        jobs = self._missing(method.name, knobs, book)
        if not jobs:
            return
        try:
            made, seconds = self._call(method, knobs, jobs)
        except TrainingDiverged as error:
            log.warning("%s with %s diverged: %s", method.name, knobs_word(knobs), error)
            return
        started = self._clock()
        drawn = _Drawn(
            method=method.name,
            knobs=knobs_word(knobs),
            jobs=jobs,
            rgb_Jn3HW=self._sample(made, jobs),
            trainable=self._trained_numbers(method, made, jobs),
            seconds=seconds,
            sampling_seconds=(self._clock() - started) / len(jobs),
        )
        entries = self._enter(drawn, book)
        mean = sum(entry.joint.hmean for entry in entries) / len(entries)
        log.info("%s %s: %.3f over %d pairs", drawn.method, drawn.knobs, mean, len(entries))

    def _call(self, method: Method, knobs: Knobs, jobs: Sequence[Job]) -> tuple[Made, float]:
        """Run a method on jobs; return what it made and its seconds for each job.

        The clock does not see pictures being encoded for a merge: every merge is given them alike.
        """
        if method.on_host and len(jobs) > 1:
            folders, seeds = [job.folder for job in jobs], [job.config.merge.seed for job in jobs]
            return self._pool.merge(method.call, knobs, folders, seeds)
        inputs: list[object] = [
            recipe_case(job) if method.kind is Kind.RECIPE else self._cases[job.pair.name] for job in jobs
        ]
        configured = (jobs[0].config,) if method.takes_config else ()
        started = self._clock()
        made: Made = method.call(self._base, inputs, *configured, **knobs)
        return made, (self._clock() - started) / len(jobs)

    def _trained_numbers(self, method: Method, made: Made, jobs: Sequence[Job]) -> list[int]:
        """Count what a method trained for each job."""
        if method.kind is Kind.RECIPE and isinstance(made, Sequence):
            return [lora.trainable_numbers for lora in made]
        return [method.trained_numbers(self._cases[job.pair.name]) for job in jobs]

    def _sample(self, made: Made, jobs: Sequence[Job]) -> Tensor:
        """Draw every job's joint prompt, then its recontextualised one; (J, 2 n, 3, H, W) in [0, 1]."""
        prompts = [[job.config.prompts.joint] * PICTURES + [job.pair.recontext_prompt] * PICTURES for job in jobs]
        # The same noise for every method: differences between methods are paired.
        seeds = [picture_seed(job.pair, job.seed, "noise", 0) for job in jobs]
        config = jobs[0].config.preview.model_copy(update={"images": 2 * PICTURES})
        return (sample_tenants(self._base, made, prompts, config, seeds) / 2 + 0.5).clamp(0, 1)

    def _enter(self, drawn: _Drawn, book: ScoreBook[Entry]) -> list[Entry]:
        """Score pictures, write the entries, keep some pictures to be looked at."""
        device = next(self._evaluator.parameters()).device
        sight = look(self._evaluator, drawn.rgb_Jn3HW.flatten(0, 1).to(device))
        each = 2 * PICTURES
        entries = []
        for index, job in enumerate(drawn.jobs):
            to = self._references[job.pair.name]
            first, middle, end = index * each, index * each + PICTURES, (index + 1) * each
            entries.append(
                Entry(
                    method=drawn.method,
                    knobs=drawn.knobs,
                    pair=job.pair.name,
                    seed=job.seed,
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
        shown = {pair.name for pair in self._plan.pairs[:SHOWN_PAIRS]}
        for job, rgb_n3HW in zip(drawn.jobs, drawn.rgb_Jn3HW, strict=True):
            if job.seed == 0 and job.pair.name in shown:
                path = shown_pictures(self._plan.out, drawn.method, drawn.knobs, job.pair)
                path.parent.mkdir(parents=True, exist_ok=True)
                to_image(torch.cat(list(rgb_n3HW), dim=2)).save(path)

    def _clock(self) -> float:
        """Return the time, once the device has done all it was told to."""
        if self._base.runtime.device.type == "cuda":
            torch.cuda.synchronize(self._base.runtime.device)
        return time.monotonic()


def shown_pictures(out: Path, method: str, knobs: str, pair: TruthPair) -> Path:
    """Return where the kept pictures of a setting and a pair lie, side by side: joint prompt, then recontextualised."""
    return out / "pictures" / method.replace(" ", "-") / knobs / f"{pair.name}.png"
