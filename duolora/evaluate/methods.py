"""The methods that are compared, one line each: what is called, which knobs are swept, what is trained.

DuoLoRA stands there with its default merge, with the other recipes of `duolora.recipes`, and with the paper's ablation:
each the same whatever merge the recipe of the run names.

Three kinds. A *reference* is no rival: it shows what one LoRA does alone. A *merge* is given two LoRAs (table A). A
*recipe* is given pictures and does everything itself (table B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from typing import TYPE_CHECKING, Any

from duolora.baselines import (
    b_lora,
    duolora_release,
    joint_training,
    k_lora,
    np_lora,
    peft_merges,
    ssr_merge,
    weighted_sum,
    zip_lora,
)
from duolora.baselines.side_weights import SideWeighted
from duolora.config import LayerPrior, MaskStart, Preservation
from duolora.errors import InvalidConfig
from duolora.evaluate.jobs import case_of_loras
from duolora.lora_task import LoraTask
from duolora.merge import merge_cases
from duolora.method.merge_case import SIDES
from duolora.recipes import MERGE_RECIPES
from duolora.train import train_tenants

if TYPE_CHECKING:
    from duolora.baselines.recipe_case import RecipeCase
    from duolora.config import MergeConfig, PersonalizeConfig
    from duolora.lora.weights import LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

OURS = "duolora"
"""The method that every rival's difference is taken to."""
TRUTH = "truth"
"""The row of true pictures; it has no method behind it."""
COMPANY = 0.5
"""Share of the samples that meet both LoRAs where they are trained in company."""

Knob = float | int | str | bool | None
Knobs = Mapping[str, Knob]
Call = Callable[..., Any]
"""(base, cases, **knobs) -> one LoRA per case, or an `Attached` that samples them all; cases are `MergeCase`s for a
merge, `RecipeCase`s for a recipe. What takes the configuration of the run gets it after the cases."""


def _never(_config: PersonalizeConfig, _knobs: Knobs) -> bool:
    return False


def _numbers_of(lora: LoraWeights) -> int:
    return lora.trainable_numbers


def _always(_config: PersonalizeConfig, _knobs: Knobs) -> bool:
    return True


class Kind(StrEnum):
    """What a method is given."""

    REFERENCE = "reference"
    MERGE = "merge"
    RECIPE = "recipe"


@dataclass(frozen=True, slots=True)
class Method:
    """A method, the settings of it that are tried, and how many numbers it trains for one case.

    `grid` is what is swept on the development list. `chosen` are the settings that did well there (and what the
    method's authors ship, where that is another one); they alone meet the full list, and the best of them by harmonic
    mean stands in the table. Empty, all of the grid does. For our own method there is one setting: what ships.
    `sees_pictures` says whether a merge looks at pictures; they are encoded only for one that does. `on_host` marks
    merges that need nothing but the two LoRAs and take long on one core: cases then run side by side. `recipe_numbers`
    counts what a recipe trained from what it leaves.
    """

    name: str
    call: Call
    grid: tuple[Knobs, ...] = ({},)
    chosen: tuple[Knobs, ...] = ()
    trainable: Callable[[MergeCase], int] | None = None
    recipe_numbers: Callable[[LoraWeights], int] = _numbers_of
    trains: Callable[[PersonalizeConfig, Knobs], bool] = _always
    sees_pictures: Callable[[PersonalizeConfig, Knobs], bool] = _never
    kind: Kind = Kind.MERGE
    takes_config: bool = False
    on_host: bool = False

    def trained_numbers(self, case: MergeCase, config: PersonalizeConfig, knobs: Knobs) -> int:
        """Return how many numbers the method trains beside the two given LoRAs, by gradients."""
        return self.trainable(case) if self.trainable is not None and self.trains(config, knobs) else 0


def sweep(**choices: Sequence[Knob]) -> tuple[Knobs, ...]:
    """Return every combination of the choices."""
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


def leaning(knobs: Iterable[Knobs], leanings: Sequence[tuple[float, float]] | None = None) -> tuple[Knobs, ...]:
    """Return every setting with each of some weights of content and style, the `LEANINGS` if none are given."""
    weights = [{"content_weight": content, "style_weight": style} for content, style in leanings or LEANINGS]
    return tuple({**setting, **of_sides} for setting in knobs for of_sides in weights)


def output_numbers(case: MergeCase) -> int:
    """Count one number per output of every adapted layer and side."""
    return sum(layer.up_OR.shape[0] for lora in case.loras.values() for layer in lora.layers.values())


def rank_numbers(case: MergeCase) -> int:
    """Count one number per rank of every adapted layer and side."""
    return sum(layer.rank for lora in case.loras.values() for layer in lora.layers.values())


def module_rank_numbers(case: MergeCase) -> int:
    """Count one number per rank of every mask of the release: the four layers of an attention module share one."""
    modules = {
        (side, duolora_release.mask_module(name)): layer.rank
        for side, lora in case.loras.items()
        for name, layer in lora.layers.items()
    }
    return sum(modules.values())


def _one_side(side: str) -> Call:
    """Return the method that uses one side's LoRA as it is."""

    def take(_base: DiffusionBase, cases: Sequence[MergeCase]) -> list[LoraWeights]:
        return [case.loras[side] for case in cases]

    return take


def _scaled(train: Call) -> Call:
    """Return a recipe whose training knobs are factors of the configured steps and learning rate."""

    def run(
        base: DiffusionBase,
        cases: Sequence[RecipeCase],
        config: PersonalizeConfig,
        *,
        steps: float = 1,
        rate: float = 1,
    ) -> list[LoraWeights]:
        lora = config.content
        changed = {
            "steps": round(lora.steps * steps),
            "learning_rate": lora.learning_rate * rate,
            # No rival's recipe draws class pictures or adapts the text encoders.
            "preservation": Preservation(),
            "text_encoder": False,
        }
        trained: list[LoraWeights] = train(base, cases, lora.model_copy(update=changed))
        return trained

    return run


def _ours(name: str, merge: MergeConfig) -> Method:
    """Return a variant of DuoLoRA's merge."""

    def settings(knobs: Knobs) -> MergeConfig:
        return merge.model_copy(update=dict(knobs))

    def run(
        base: DiffusionBase, cases: Sequence[MergeCase], config: PersonalizeConfig, **knobs: Knob
    ) -> list[LoraWeights]:
        results = merge_cases(base, cases, settings(knobs), resolution_px=config.content.resolution_px)
        return [result.weights for result in results]

    return Method(
        name,
        run,
        trainable=rank_numbers,
        trains=lambda _config, knobs: settings(knobs).steps > 0,
        sees_pictures=lambda _config, knobs: settings(knobs).needs_pictures,
        takes_config=True,
    )


def _company(
    base: DiffusionBase, cases: Sequence[RecipeCase], config: PersonalizeConfig, *, company: float = COMPANY
) -> list[LoraWeights]:
    """Train both LoRAs of every case in one pass, each in the other's company, and merge them as by default."""
    changed = {"company": company, "preservation": Preservation()}
    of_side = dict(zip(SIDES, (config.content, config.style), strict=True))
    tenants = [
        [
            LoraTask(
                side,
                case.pictures[side],
                case.captions[side],
                settings.model_copy(update=changed | {"seed": case.seed}),
            )
            for side, settings in of_side.items()
        ]
        for case in cases
    ]
    trained = train_tenants(base, tenants)
    given = [case_of_loras(loras, case.seed) for loras, case in zip(trained, cases, strict=True)]
    results = merge_cases(base, given, MERGE_RECIPES["duolora"], resolution_px=config.content.resolution_px)
    return [result.weights for result in results]


def _recipe(
    name: str,
    train: Call,
    grid: tuple[Knobs, ...],
    chosen: tuple[Knobs, ...],
    numbers: Callable[[LoraWeights], int] = _numbers_of,
) -> Method:
    """Return a rival that trains from pictures."""
    return Method(name, _scaled(train), grid, chosen, recipe_numbers=numbers, kind=Kind.RECIPE, takes_config=True)


CONTENT_WEIGHTS = (0.5, 0.7, 0.85, 1.0, 1.2)
STYLE_WEIGHTS = (0.7, 0.85, 1.0, 1.2, 1.4)
AS_GIVEN, LIGHT, HEAVY = (1.0, 1.0), (0.7, 1.2), (0.85, 1.4)
LEANINGS = (AS_GIVEN, LIGHT, HEAVY)
"""Weights of content and style that every merge of two whole LoRAs is tried with, as the weighted sum is with more."""
SUMS = (AS_GIVEN, (0.5, 1.0), (0.7, 0.85), (0.7, 1.0), LIGHT, (0.7, 1.4), (0.85, 1.0), (0.85, 1.2), HEAVY)
"""Sums that meet the full list: the best of the sweep of 25, at 100 steps of training and at 250, and the plain one."""
PAPER = MERGE_RECIPES["paper"]
PLAIN = {"start": MaskStart.ONES, "prior": LayerPrior.NONE, "constyle_weight": 0.0}
"""The paper's merge without its priors and its cycles: rank masks that learn by distillation, from ones."""
REFINED = MERGE_RECIPES["duolora"].model_copy(
    update={
        "steps": 16,
        "learning_rate": 0.005,
        "bank_size": 12,
        "batch_size": 2,
        "constyle_every": 1,
        "constyle_weight": 0.1,
    }
)
"""Measured strengths, and then a few steps of distillation and cycles."""
PEFT_KEPT = ("ties_svd", "dare_ties_svd", "magnitude_prune_svd")
DENSITIES = (0.3, 0.7)

METHODS: tuple[Method, ...] = (
    Method("content alone", _one_side("content"), kind=Kind.REFERENCE),
    Method("style alone", _one_side("style"), kind=Kind.REFERENCE),
    _ours(OURS, MERGE_RECIPES["duolora"]),
    Method(
        "weighted-sum",
        weighted_sum.merge,
        sweep(content_weight=CONTENT_WEIGHTS, style_weight=STYLE_WEIGHTS),
        leaning(({},), SUMS),
    ),
    Method(
        "np-lora",
        SideWeighted(np_lora.merge),
        leaning(sweep(mu=(0.1, 0.25, 0.5, 1.0, 2.0))),
        (*leaning(sweep(mu=(0.5, 2.0)), (AS_GIVEN, LIGHT)), *leaning(sweep(mu=(2.0,)), (HEAVY,))),
        on_host=True,
    ),
    Method(
        "ssr-merge",
        SideWeighted(ssr_merge.merge),
        leaning(sweep(ridge=(0.001, 0.01, 0.1, 0.5))),
        leaning(sweep(ridge=(0.001,))),
        sees_pictures=_always,
    ),
    Method(
        "k-lora",
        k_lora.attach,
        sweep(alpha=(1.0, 1.5, 2.0), beta=(0.3, 0.5, 0.8)),
        ({"alpha": 1.5, "beta": 0.5}, *sweep(alpha=(1.0, 1.5), beta=(0.8,))),
    ),
    Method(
        "zip-lora",
        zip_lora.merge,
        sweep(similarity_weight=(0.0, 0.001, 0.01), learning_rate=(0.003, 0.01)),
        ({"similarity_weight": 0.01, "learning_rate": 0.01}, {"similarity_weight": 0.001, "learning_rate": 0.003}),
        output_numbers,
        sees_pictures=_always,
    ),
    Method(
        "duolora-release",
        duolora_release.merge,
        sweep(prior_weight=(0.0, 0.01)),
        trainable=module_rank_numbers,
        sees_pictures=_always,
    ),
    Method(
        "peft-svd",
        peft_merges.merge,
        leaning(sweep(combination=("svd",))),
        leaning(sweep(combination=("svd",)), (AS_GIVEN, LIGHT)),
        on_host=True,
    ),
    *(
        Method(
            f"peft-{name.replace('_', '-')}",
            peft_merges.merge,
            leaning(sweep(combination=(name,), density=DENSITIES)),
            leaning(sweep(combination=(name,), density=(0.7,)), (LIGHT, HEAVY)),
            on_host=True,
        )
        for name in PEFT_KEPT
    ),
    _ours("instant", MERGE_RECIPES["instant"]),
    _ours("ziprank", PAPER.model_copy(update=PLAIN)),
    _ours("ziprank+priors", PAPER.model_copy(update={"constyle_weight": 0.0})),
    _recipe(
        "b-lora", b_lora.train, sweep(steps=(1, 2), rate=(1, 2)), sweep(steps=(1,), rate=(2,)), b_lora.trained_numbers
    ),
    _recipe("joint-training", joint_training.train, sweep(steps=(1, 2)), sweep(steps=(2,))),
    Method("company", _company, kind=Kind.RECIPE, takes_config=True),
    _ours("duolora+constyle", REFINED),
    _ours("ziprank+priors+constyle", PAPER),
)


def chosen_methods(names: str, *, whole_grid: bool = False) -> tuple[Method, ...]:
    """Return the references and the methods of a comma-separated list, or all for `all`.

    Each has the settings that it was chosen with, or all it can be tried with if `whole_grid`.

    Raises:
        InvalidConfig: a name is unknown; the message lists those that are known.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    rivals = [method.name for method in METHODS if method.kind is not Kind.REFERENCE]
    unknown = wanted - {"all"} - set(rivals)
    if unknown or not wanted:
        named = ", ".join(sorted(unknown)) or "none was named"
        raise InvalidConfig(f"unknown methods: {named}; known: all, {', '.join(rivals)}")
    named_ones = [
        method for method in METHODS if method.kind is Kind.REFERENCE or "all" in wanted or method.name in wanted
    ]
    return tuple(method if whole_grid else replace(method, grid=method.chosen or method.grid) for method in named_ones)
