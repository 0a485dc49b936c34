"""Measures layer priors: how strongly each side should act in each group of layers, so that merges come out best.

    python -m duolora.evaluate.measure_priors --out measured_priors.json [--pairs 48] [--steps 80] [--lora-steps 250]

LoRAs of many pairs are trained together by the tiny recipe's settings and attached once. Then strengths and tails of
groups of layers for both sides are moved along their gradients through the sampler, to raise the mean harmonic mean of
content and style on the joint prompt. What comes out is written in the form of `duolora/method/measured_priors.json`,
with what it scores before and after the search under noise that the search never saw, on the pairs of the search, on
the development list and on calibration pairs held back. No pair of the full suite is looked at.
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

from duolora.config import TargetLayers
from duolora.evaluate.jobs import Job, in_chunks
from duolora.evaluate.metrics import references
from duolora.evaluate.network import shipped_evaluator
from duolora.evaluate.prior_ascent import Ascent, Climbed, climb
from duolora.evaluate.prior_bench import PriorBench
from duolora.evaluate.prior_pairs import HELD_BACK_OF, Group, measured_pairs
from duolora.evaluate.prior_space import PriorSpace
from duolora.evaluate.provenance import environment, truth_identity
from duolora.evaluate.truth_suite import TruthPair, judge_pictures, picture_seed, write_pictures
from duolora.lora.canonical import canonicalise
from duolora.merge import whole_model_roles
from duolora.method.measured_priors import SidePrior, measured_priors
from duolora.method.merge_case import SIDES
from duolora.models.registry import load_base
from duolora.recipes import resolve
from duolora.runtime import choose_runtime
from duolora.train import train_tenants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from duolora.config import PersonalizeConfig
    from duolora.evaluate.metrics import Score
    from duolora.evaluate.network import Evaluator
    from duolora.lora.weights import LoraWeights
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

    `grid`, `calibration` and `development` are numbers of pairs as `prior_pairs.measured_pairs` takes them;
    `lora_steps` overrides the recipe's; `together` pairs are trained in the same passes; `seconds` bounds the search,
    not the trainings.
    """

    ascent: Ascent
    grid: int = 64
    calibration: int = 48
    development: int | None = None
    targets: TargetLayers = TargetLayers.ATTENTION
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


@dataclass(frozen=True, slots=True, eq=False)
class _Trained:
    """A pair, what it is for, and its LoRAs in canonical form."""

    group: Group
    pair: TruthPair
    config: PersonalizeConfig
    loras: dict[str, LoraWeights]


def measure(base: DiffusionBase, evaluator: Evaluator, search: Search) -> dict[str, Any]:
    """Run a search and return the document to write.

    Raises:
        InvalidConfig: a pair belongs to the full suite, there are not so many, or none has a say in the search.
        TrainingDiverged, OutOfMemory: as in training.
    """
    started = time.monotonic()
    trained = _train(base, search)
    log.info("trained the LoRAs of %d pairs in %.0f s", len(trained), time.monotonic() - started)
    searched = [one for one in trained if one.group.is_searched]
    others = [one for one in trained if not one.group.is_searched]
    config = searched[0].config
    space = PriorSpace(whole_model_roles(base, searched[0].loras[SIDES[0]].layers, config.content.resolution_px))
    start_D = space.ones() if search.start == ONES else space.point(measured_priors())
    with _bench(base, evaluator, space, searched, search) as bench:
        before = _judge(bench, start_D, searched, search)
        climbed = _climb(bench, space, start_D, searched, search)
        found = _rounded(space.priors(climbed.point_D))
        scores = _compared(searched, before, _judge(bench, space.point(found), searched, search))
    if others:
        with _bench(base, evaluator, space, others, search) as bench:
            scores |= _compared(
                others, *(_judge(bench, at_D, others, search) for at_D in (start_D, space.point(found)))
            )
    return {
        "source": _source(search, searched, len(climbed.values)),
        **{role.value: asdict(prior) for role, prior in found.items()},
        "scores": scores,
        "provenance": {
            **environment(base),
            **truth_identity().flat(),
            "search": asdict(search),
            "steps_taken": len(climbed.values),
            "values": [round(value, 4) for value in climbed.values],
            "seconds": round(time.monotonic() - started, 1),
            "content": config.content.model_dump(mode="json"),
            "style": config.style.model_dump(mode="json"),
            "sampling": config.preview.model_dump(mode="json"),
            "pairs": {group.value: [one.pair.name for one in trained if one.group is group] for group in Group},
        },
    }


def _rounded(found: Mapping[Role, SidePrior]) -> dict[Role, SidePrior]:
    """Return priors as they are written; what is written is what is judged."""
    return {
        role: SidePrior(
            *({group: round(value, 2) for group, value in of.items()} for of in (prior.strengths, prior.tails))
        )
        for role, prior in found.items()
    }


def _source(search: Search, searched: Sequence[_Trained], steps: int) -> str:
    """Return a sentence on where the priors come from."""
    grid = sum(one.group is Group.DEVELOPMENT_GRID for one in searched)
    content, style = searched[0].config.content, searched[0].config.style
    return (
        f"duolora.evaluate.measure_priors on {grid} pairs of development subjects and {len(searched) - grid} known "
        f"pairs, {search.targets.value} LoRAs of rank {content.rank}, {content.steps} and {style.steps} steps, "
        f"{steps} gradient steps through the sampler, {datetime.now(UTC).date().isoformat()}"
    )


def _train(base: DiffusionBase, search: Search) -> list[_Trained]:
    """Train both LoRAs of every pair."""
    listed = measured_pairs(search.grid, search.calibration, development=search.development, seed=search.seed)
    configs = [search.config(base.location, pair) for _, pair in listed]
    loras: list[Mapping[str, LoraWeights]] = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(pair.name, search.seed, config, write_pictures(pair, search.seed, Path(folder) / pair.name), {})
            for (_, pair), config in zip(listed, configs, strict=True)
        ]
        for chunk in in_chunks(jobs, search.together):
            loras += train_tenants(base, [[job.task(side) for side in SIDES] for job in chunk])
    return [
        _Trained(group, pair, config, {side: canonicalise(of_pair[side]) for side in SIDES})
        for (group, pair), config, of_pair in zip(listed, configs, loras, strict=True)
    ]


def _bench(
    base: DiffusionBase, evaluator: Evaluator, space: PriorSpace, trained: Sequence[_Trained], search: Search
) -> PriorBench:
    """Return the bench of some pairs."""
    return PriorBench(
        base,
        evaluator,
        space,
        loras=[one.loras for one in trained],
        prompts=[one.config.prompts.joint for one in trained],
        references=[references(evaluator, judge_pictures(one.pair, search.seed, 1)) for one in trained],
        sampling=trained[0].config.preview,
    )


def _climb(
    bench: PriorBench, space: PriorSpace, start_D: Tensor, searched: Sequence[_Trained], search: Search
) -> Climbed:
    """Move strengths and tails uphill, new noise for every step."""
    began = time.monotonic()

    def slope(point_D: Tensor, step: int) -> tuple[float, Tensor]:
        return bench.slope(point_D, [picture_seed(one.pair, search.seed, "search", step) for one in searched])

    def over() -> float:
        if search.seconds is None:
            return 0.0
        return 1.0 if search.seconds <= 0 else (time.monotonic() - began) / search.seconds

    return climb(slope, start_D, search.ascent, bounds=space.bounds, over=over)


def _judge(bench: PriorBench, point_D: Tensor, trained: Sequence[_Trained], search: Search) -> list[list[Score]]:
    """Score a point under noise that the search does not see; a list for each noise, a score for each pair."""
    return [
        bench.scores(point_D, [picture_seed(one.pair, search.seed, "judged", number) for one in trained])
        for number in range(JUDGED_NOISE)
    ]


def _compared(
    trained: Sequence[_Trained], before: Sequence[Sequence[Score]], after: Sequence[Sequence[Score]]
) -> dict[str, Any]:
    """Return, for each group of pairs, means with standard errors before and after, and of the paired difference."""

    def per_pair(runs: Sequence[Sequence[Score]], field: str, group: Group) -> list[float]:
        means = [statistics.fmean(getattr(one, field) for one in scores) for scores in zip(*runs, strict=True)]
        return [mean for mean, one in zip(means, trained, strict=True) if one.group is group]

    compared: dict[str, Any] = {}
    for group in sorted({one.group for one in trained}):
        ends = per_pair(before, "hmean", group), per_pair(after, "hmean", group)
        gains = [late - early for early, late in zip(*ends, strict=True)]
        compared[group.value] = {
            "pairs": len(gains),
            **{
                when: {field: _mean_and_error(per_pair(runs, field, group)) for field in ("content", "style", "hmean")}
                for when, runs in (("before", before), ("after", after))
            },
            "gain": _mean_and_error(gains),
        }
    return compared


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
        ascent=Ascent(steps=given.steps),
        grid=given.development_grid,
        calibration=given.pairs,
        development=given.development,
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
        before, after = (scores[when]["hmean"]["mean"] for when in ("before", "after"))
        log.info("%-16s hmean %.3f -> %.3f, gain %s", group, before, after, scores["gain"])


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--pairs", type=int, default=48, help=f"calibration pairs; one of {HELD_BACK_OF} is held back from the search"
    )
    parser.add_argument(
        "--development-grid",
        type=int,
        default=64,
        metavar="N",
        help="further pairs, of the development list's subjects in styles that the base knows",
    )
    parser.add_argument(
        "--development", type=int, metavar="N", help="check on so many pairs of the development list (default: all)"
    )
    parser.add_argument("--steps", type=int, default=80, help="gradient steps of the search")
    parser.add_argument("--seconds", type=float, help="end the search after so long")
    parser.add_argument(
        "--targets",
        type=TargetLayers,
        choices=list(TargetLayers),
        default=TargetLayers.ATTENTION,
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
