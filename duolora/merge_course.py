"""The way of one merge through its steps: who is told, who keeps checkpoints, where it begins, and how masks move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from duolora.checkpoints import learner_tensors, restore_learner, set_random_state
from duolora.errors import TrainingDiverged
from duolora.events import Observer, Progress, advance
from duolora.keeping import Keeper, Part, proceed, resumed
from duolora.method.merge_objective import MergeObjective, StepDraw
from duolora.recorded_step import RecordedSteps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from duolora.config import MergeConfig

_MASKS = "masks"
"""The one part of a merge's checkpoints."""


class MergeCourse:
    """The way of one merge through its steps: who is told, who keeps checkpoints, where it begins."""

    def __init__(self, observer: Observer, keeper: Keeper | None, total: int, *, records: bool) -> None:
        """`records`: whole steps may be recorded where there is a GPU."""
        self.records = records
        self.observer = observer
        self.keeper = keeper
        self.total = total
        self.saved = resumed(keeper)
        self.first = 0 if self.saved is None else min(self.saved.step, total)

    def tell(self, note: str) -> None:
        """Say what is done before the next step."""
        self.observer.on_progress(Progress(step=self.first, total=self.total, note=note))

    def pause(self, note: str) -> None:
        """Say what is done before the next step, and honour a request to stop.

        Raises:
            Cancelled: the observer asks for it.
        """
        advance(self.observer, Progress(step=self.first, total=self.total, note=note))


def optimise(
    objective: MergeObjective,
    masks: Mapping[str, Tensor],
    config: MergeConfig,
    generators: Sequence[torch.Generator],
    course: MergeCourse,
) -> list[dict[str, list[float]]]:
    """Take all steps, masks by layer; return the terms of every step, a number per tenant each.

    Raises:
        TrainingDiverged: a loss is not finite.
        Cancelled: the observer asks to stop.
        CheckpointUnusable: what the keeper found is not of this merge.
    """
    device = next(iter(masks.values())).device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(list(masks.values()), lr=config.learning_rate, fused=on_gpu or None, capturable=on_gpu)
    steps = RecordedSteps(device if course.records else torch.device("cpu"))
    losses: list[dict[str, list[float]]] = []

    def parts() -> dict[str, Part]:
        states = {f"random/{tenant}": generator.get_state() for tenant, generator in enumerate(generators)}
        return {_MASKS: Part(learner_tensors(masks, optimizer) | states, {"losses": losses})}

    if course.saved is not None:
        part = course.saved.part(_MASKS)
        restore_learner(masks, optimizer, part)
        losses += part.value("losses")
        for tenant, generator in enumerate(generators):
            set_random_state(generator, part.tensor(f"random/{tenant}"))
    names: dict[bool, list[str]] = {}

    def learn(*tensors: Tensor) -> Tensor:
        """Take one step; return its terms, (terms, J)."""
        drawn = StepDraw.of(tensors)
        terms = objective.evaluate(drawn)
        optimizer.zero_grad(set_to_none=True)
        terms["total"].sum().backward()
        optimizer.step()
        names[drawn.cycle is not None] = list(terms)
        return torch.stack([values_J.detach() for values_J in terms.values()])

    for step in range(course.first, config.steps):
        drawn = objective.draw(step, generators)
        cycles = drawn.cycle is not None
        values = steps.run(cycles, learn, drawn.tensors()).tolist()
        losses.append(dict(zip(names[cycles], values, strict=True)))
        total = sum(losses[-1]["total"]) / len(generators)
        if not math.isfinite(total):
            raise TrainingDiverged(f"the merge's loss is {total} at step {step + 1}")
        progress = Progress(step=step + 1, total=config.steps, loss=total, note="merging")
        if not proceed(course.observer, course.keeper, progress, parts):
            break
    return losses
