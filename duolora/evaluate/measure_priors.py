"""Measures layer priors: how strongly each side should act in each group of layers, so that merges come out best.

    python -m duolora.evaluate.measure_priors --out measured_priors.json [--pairs 72] [--steps 16] [--seconds 900]

LoRAs of many pairs are trained together by the tiny recipe's settings and attached once. Then strengths of groups of
layers for both sides, and both tails, are moved by an evolution strategy to raise the mean harmonic mean of content and
style on the joint prompt. What comes out is written in the form of `duolora/method/measured_priors.json`, with what it
scores before and after the search under noise that the search never saw. No pair of the full suite is looked at.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from duolora.config import TargetLayers
from duolora.evaluate.evolution import Climbed, Strategy, climb
from duolora.evaluate.jobs import Job, in_chunks
from duolora.evaluate.metrics import references
from duolora.evaluate.network import shipped_evaluator
from duolora.evaluate.prior_bench import PriorBench
from duolora.evaluate.prior_pairs import Group, measured_pairs
from duolora.evaluate.prior_space import PriorSpace
from duolora.evaluate.provenance import environment, truth_identity
from duolora.evaluate.truth_suite import TruthPair, judge_pictures, picture_seed, write_pictures
from duolora.lora.canonical import canonicalise
from duolora.merge import whole_model_roles
from duolora.method.measured_priors import measured_priors
from duolora.method.merge_case import SIDES
from duolora.models.registry import load_base
from duolora.recipes import resolve
from duolora.runtime import choose_runtime
from duolora.train import train_tenants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from duolora.config import PersonalizeConfig
    from duolora.evaluate.metrics import Score
    from duolora.evaluate.network import Evaluator
    from duolora.lora.weights import LoraWeights
    from duolora.method.measured_priors import SidePrior
    from duolora.method.priors import Role
    from duolora.models.base import DiffusionBase

log = logging.getLogger("duolora.evaluate.measure_priors")
"""By name: run as a program, the module is called `__main__`."""

RECIPE = "tiny"
PICTURES = 4
JUDGED_NOISE = 2
"""Noises of each pair that the scores before and after are means over."""
SHIPPED, ONES = "shipped", "ones"

# Legend: J pairs, D coordinates of a point.


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What to measure: pairs, how their LoRAs are trained, where the search starts and how far it goes.

    `development` and `calibration` are numbers of pairs, None for the whole development list; `lora_steps` overrides
    the recipe's; `together` pairs are trained in the same passes; `seconds` bounds the search, not the trainings.
    """

    strategy: Strategy
    development: int | None = None
    calibration: int = 72
    targets: TargetLayers = TargetLayers.TRANSFORMER
    lora_steps: int | None = None
    sampling_steps: int | None = None
    start: str = SHIPPED
    seed: int = 0
    together: int = 48
    seconds: float | None = None

    def config(self, base_name: str, pair: TruthPair) -> PersonalizeConfig:
        """Return the recipe's configuration of one pair, each LoRA by itself, with this search's changes."""
        steps, seed = self.lora_steps, picture_seed(pair, self.seed, "training", 0)
        config = resolve(RECIPE, base_name, pair.prompts, content_steps=steps, style_steps=steps, seed=seed)
        sides = {
            side: getattr(config, side).model_copy(update={"targets": self.targets, "company": 0.0}) for side in SIDES
        }
        sampled = {"images": PICTURES, "steps": self.sampling_steps or config.preview.steps}
        return config.model_copy(update={**sides, "preview": config.preview.model_copy(update=sampled)})


def measure(base: DiffusionBase, evaluator: Evaluator, search: Search) -> dict[str, Any]:
    """Run a search and return the document to write.

    Raises:
        InvalidConfig: a pair belongs to the full suite, or there are not so many.
        TrainingDiverged, OutOfMemory: as in training.
    """
    started = time.monotonic()
    listed = measured_pairs(search.development, search.calibration, search.seed)
    pairs = [pair for _, pair in listed]
    configs = [search.config(base.location, pair) for pair in pairs]
    loras = _train(base, search, pairs, configs)
    log.info("trained the LoRAs of %d pairs in %.0f s", len(pairs), time.monotonic() - started)
    space = PriorSpace(whole_model_roles(base, loras[0][SIDES[0]].layers, configs[0].content.resolution_px))
    start_D = space.ones() if search.start == ONES else space.point(measured_priors())
    with PriorBench(
        base,
        evaluator,
        space,
        loras=loras,
        prompts=[config.prompts.joint for config in configs],
        references=[references(evaluator, judge_pictures(pair, search.seed, 1)) for pair in pairs],
        sampling=configs[0].preview,
    ) as bench:
        before = _judge(bench, start_D, pairs, search.seed)
        climbed = _climb(bench, space, start_D, listed, search)
        after = _judge(bench, climbed.point_D, pairs, search.seed)
    return {
        **_priors_record(space.priors(climbed.point_D), search, configs[0], len(pairs)),
        "scores": {group.value: _compared(before, after, [own is group for own, _ in listed]) for group in Group},
        "provenance": {
            **environment(base),
            **truth_identity().flat(),
            "search": asdict(search),
            "steps_taken": len(climbed.tried),
            "tried": [round(score, 4) for score in climbed.tried],
            "seconds": round(time.monotonic() - started, 1),
            "content": configs[0].content.model_dump(mode="json"),
            "style": configs[0].style.model_dump(mode="json"),
            "sampling": configs[0].preview.model_dump(mode="json"),
            "pairs": {group.value: [pair.name for own, pair in listed if own is group] for group in Group},
        },
    }


def _priors_record(
    found: Mapping[Role, SidePrior], search: Search, config: PersonalizeConfig, pairs: int
) -> dict[str, Any]:
    """Return what `duolora.method.measured_priors` reads, and a sentence on where it comes from."""
    trained = f"rank {config.content.rank}, {config.content.steps} and {config.style.steps} steps"
    today = datetime.now(UTC).date().isoformat()
    sides = {
        role.value: {
            "tail": round(prior.tail, 3),
            "strengths": {group: round(value, 3) for group, value in prior.strengths.items()},
        }
        for role, prior in found.items()
    }
    source = f"duolora.evaluate.measure_priors on {pairs} pairs, {search.targets.value} LoRAs of {trained}, {today}"
    return {"source": source, **sides}


def _train(
    base: DiffusionBase, search: Search, pairs: Sequence[TruthPair], configs: Sequence[PersonalizeConfig]
) -> list[dict[str, LoraWeights]]:
    """Train both LoRAs of every pair and return them in canonical form."""
    trained: list[Mapping[str, LoraWeights]] = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(pair.name, search.seed, config, write_pictures(pair, search.seed, Path(folder) / pair.name), {})
            for pair, config in zip(pairs, configs, strict=True)
        ]
        for chunk in in_chunks(jobs, search.together):
            trained += train_tenants(base, [[job.task(side) for side in SIDES] for job in chunk])
    return [{side: canonicalise(loras[side]) for side in SIDES} for loras in trained]


def _climb(
    bench: PriorBench, space: PriorSpace, start_D: Tensor, listed: Sequence[tuple[Group, TruthPair]], search: Search
) -> Climbed:
    """Move the strengths uphill, new noise for every draw."""

    def hmeans(points_JD: Tensor, draw: int) -> Tensor:
        seeds = [picture_seed(pair, search.seed, "search", draw) for _, pair in listed]
        return torch.tensor([one.hmean for one in bench.scores(points_JD, seeds)])

    return climb(
        hmeans,
        start_D,
        search.strategy,
        counted_J=torch.tensor([group is not Group.HELD_BACK for group, _ in listed]),
        bounds=space.bounds,
        generator=torch.Generator().manual_seed(search.seed),
        go_on=_within(search.seconds),
    )


def _within(seconds: float | None) -> Callable[[], bool]:
    """Return what says whether there is time left."""
    end = float("inf") if seconds is None else time.monotonic() + seconds
    return lambda: time.monotonic() < end


def _judge(bench: PriorBench, point_D: Tensor, pairs: Sequence[TruthPair], seed: int) -> list[list[Score]]:
    """Score a point under noise that the search does not see; a list for each noise, a score for each pair."""
    return [
        bench.scores(point_D[None], [picture_seed(pair, seed, "judged", number) for pair in pairs])
        for number in range(JUDGED_NOISE)
    ]


def _compared(
    before: Sequence[Sequence[Score]], after: Sequence[Sequence[Score]], chosen: Sequence[bool]
) -> dict[str, Any] | None:
    """Return means over the chosen pairs with their standard errors, and of the paired difference; None for none."""
    if not any(chosen):
        return None

    def per_pair(runs: Sequence[Sequence[Score]], field: str) -> list[float]:
        means = [statistics.fmean(getattr(one, field) for one in scores) for scores in zip(*runs, strict=True)]
        return [mean for mean, is_chosen in zip(means, chosen, strict=True) if is_chosen]

    gains = [late - early for early, late in zip(per_pair(before, "hmean"), per_pair(after, "hmean"), strict=True)]
    return {
        "pairs": len(gains),
        **{
            when: {field: _mean_and_error(per_pair(runs, field)) for field in ("content", "style", "hmean")}
            for when, runs in (("before", before), ("after", after))
        },
        "gain": _mean_and_error(gains),
    }


def _mean_and_error(values: Sequence[float]) -> dict[str, float | None]:
    """Return a mean and its standard error, which one value alone has not."""
    error = round(statistics.stdev(values) / len(values) ** 0.5, 4) if len(values) > 1 else None
    return {"mean": round(statistics.fmean(values), 4), "standard_error": error}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure from the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("duolora.evaluate").setLevel(logging.INFO)
    given = _parser().parse_args(arguments)
    base = load_base(given.base, choose_runtime(given.device))
    search = Search(
        strategy=Strategy(steps=given.steps, draws=given.draws),
        development=given.development,
        calibration=given.pairs,
        targets=given.targets,
        lora_steps=given.lora_steps,
        sampling_steps=given.sampling_steps,
        start=given.start,
        seed=given.seed,
        together=given.together,
        seconds=given.seconds,
    )
    document = measure(base, shipped_evaluator(base.runtime.device), search)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for group, scores in document["scores"].items():
        if scores is not None:
            before, after = (scores[when]["hmean"]["mean"] for when in ("before", "after"))
            log.info("%-12s hmean %.3f -> %.3f, gain %s", group, before, after, scores["gain"])


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=72, help="calibration pairs, beside the development list's")
    parser.add_argument("--development", type=int, help="only so many development pairs")
    parser.add_argument("--steps", type=int, default=16, help="steps of the search")
    parser.add_argument("--draws", type=int, default=4, help="directions of each pair for a step")
    parser.add_argument("--seconds", type=float, help="end the search after so long")
    parser.add_argument(
        "--targets",
        type=TargetLayers,
        choices=list(TargetLayers),
        default=TargetLayers.TRANSFORMER,
        metavar="attention|transformer",
    )
    parser.add_argument("--lora-steps", type=int, help="steps of each LoRA's training (default: the recipe's)")
    parser.add_argument("--sampling-steps", type=int, help="steps of each sampling (default: the recipe's)")
    parser.add_argument("--start", choices=(SHIPPED, ONES), default=SHIPPED)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", type=int, default=48, help="pairs trained in the same passes")
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--device", default="auto")
    return parser


if __name__ == "__main__":
    main()
