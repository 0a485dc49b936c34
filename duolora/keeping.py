"""How long work leaves behind what it needs to go on later, and how it learns that it should end early. Torch-free."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from duolora.errors import Cancelled, CheckpointUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from duolora.events import Observer, Progress


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one part of the work, a side of a training for instance, needs to go on: tensors and JSON-ready values."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            CheckpointUnusable: it is not there.
        """
        if name not in self.tensors:
            raise CheckpointUnusable(f"the checkpoint has no tensor {name!r}")
        return self.tensors[name]

    def value(self, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Return a value.

        Raises:
            CheckpointUnusable: it is not there.
        """
        if name not in self.values:
            raise CheckpointUnusable(f"the checkpoint does not say {name!r}")
        return self.values[name]


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """The state of some work after `step` of `total` steps, by part."""

    step: int
    total: int
    parts: Mapping[str, Part]

    def part(self, name: str) -> Part:
        """Return a part.

        Raises:
            CheckpointUnusable: it is not there.
        """
        if name not in self.parts:
            raise CheckpointUnusable(f"the checkpoint has no part {name!r}, only {', '.join(self.parts)}")
        return self.parts[name]


def part_name(side: str, tenant: int = 0) -> str:
    """Return the name of the part of one side of one of several tenants trained together; the first's is the side's.

    A tenant's part is what it would be were it trained alone, so that it can go on alone, or in other company.
    """
    return side if tenant == 0 else f"{side}.{tenant}"


def of_tenant(saved: Saved, tenant: int) -> Saved:
    """Return what of a state is one tenant's, its parts named as if it were alone."""
    parts = {part_name(side): part for (side, owner), part in _owned(saved) if owner == tenant}
    return Saved(saved.step, saved.total, parts)


def of_tenants(states: Sequence[tuple[int, Saved]]) -> Saved:
    """Return the state of several tenants together, given parts of each's state alone; all of one step."""
    parts = {part_name(side, tenant): part for tenant, saved in states for side, part in saved.parts.items()}
    _, first = states[0]
    return Saved(first.step, first.total, parts)


def _owned(saved: Saved) -> Iterator[tuple[tuple[str, int], Part]]:
    """Yield every part with its side and its tenant: `part_name` undone."""
    for name, part in saved.parts.items():
        side, _, tenant = name.rpartition(".")
        yield ((side, int(tenant)) if side else (name, 0)), part


class Keeper(Protocol):
    """Keeps checkpoints of one piece of work; asked between its steps. Nothing here may change what is computed."""

    def resume(self) -> Saved | None:
        """Return what to go on from, the same at every call; None for a start from the beginning.

        Raises:
            CheckpointUnusable: there is something, but it cannot be read or is of other work.
        """

    def is_due(self) -> bool:
        """Say whether a checkpoint should be kept now: it is time, or the work is about to be stopped for a while."""

    def keep(self, saved: Saved) -> None:
        """Keep a checkpoint; its tensors may change as soon as this returns."""

    def should_finish(self) -> bool:
        """Say whether the work should end well with what it has; whoever is told so obeys."""


def resumed(keeper: Keeper | None) -> Saved | None:
    """Return what to go on from, if there is anything."""
    return None if keeper is None else keeper.resume()


def proceed(
    observer: Observer, keeper: Keeper | None, progress: Progress, state: Callable[[], Mapping[str, Part]]
) -> bool:
    """Report a step, keep a checkpoint where one is due or this was the last step, and say whether to go on.

    Raises:
        Cancelled: the observer asks to stop.
    """
    observer.on_progress(progress)
    stops = observer.should_stop()  # asked first: whoever stops for a while has made a checkpoint due by then
    ends = progress.step >= progress.total
    if keeper is not None:
        ends = ends or (not stops and keeper.should_finish())
        if keeper.is_due() or (ends and not stops):
            keeper.keep(Saved(progress.step, progress.total, state()))
    if stops:
        raise Cancelled(f"stopped on request after step {progress.step} of {progress.total}")
    return not ends


@contextmanager
def kept_when_stopped(keeper: Keeper | None, saved: Callable[[], Saved | None]) -> Iterator[None]:
    """Keep a checkpoint if the work inside is stopped for a while and there is anything to keep."""
    try:
        yield
    except Cancelled:
        if keeper is not None and keeper.is_due() and (state := saved()) is not None:
            keeper.keep(state)
        raise
