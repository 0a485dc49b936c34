"""One round's stage: the installation, those who use it, and what happens meanwhile, seen several times a second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    import uuid
    from collections.abc import Callable
    from concurrent.futures import Future

    from tests.chaos.callers import Callers, Order
    from tests.chaos.installation import Installation, Slot
    from tests.chaos.look import Look, RunningStage
    from tests.chaos.receiver import Receiver

TICK_S = 0.05
LOOK_S = 0.2
MAX_DEATHS = 1
"""Whom so many accidents have befallen without a step further is left alone: the poison rule would rightly end it."""
UNFINISHED = """
SELECT s.id, s.attempt, s.state, (s.checkpoint->>'step')::int AS step, j.id AS job_id, j.state AS job_state
FROM stages s JOIN jobs j ON j.id = s.job_id
WHERE j.finished_at IS NULL OR j.finished_at > now() - interval '5 seconds'
"""


@dataclass(frozen=True)
class Prey:
    """A worker that runs, and a stage that it holds."""

    slot: Slot
    stage: RunningStage


@dataclass
class Struck:
    """What a fault hit."""

    stages: list[uuid.UUID] = field(default_factory=list)
    """Their recovery is measured."""
    detail: str = ""
    recovery_s: list[float] = field(default_factory=list)
    """What the fault itself has measured."""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Sign:
    """A stage went on: a new attempt, a checkpoint, or its end."""

    stage_id: uuid.UUID
    at: float
    what: str


class Arena:
    """Everything that a fault can reach. Whatever waits here keeps the installation alive meanwhile."""

    def __init__(
        self, installation: Installation, look: Look, receiver: Receiver, callers: Callers, rng: random.Random
    ) -> None:
        self.installation = installation
        self.look = look
        self.receiver = receiver
        self.callers = callers
        self.rng = rng
        self.signs: list[Sign] = []
        self.unfinished: set[str] = set()
        self.struck: set[tuple[uuid.UUID, int]] = set()
        self.flips: list[str] = []
        """Jobs that were seen in a terminal state and then in another one."""
        self.unpublished: list[str] = []
        """Jobs whose hints stayed in the outbox although a dispatcher was there again."""
        self._ends: dict[str, str] = {}
        self._seen: dict[uuid.UUID, tuple[int, int | None, str]] = {}
        self._looked_at = 0.0
        self._began = time.time()
        self._later: list[tuple[float, Callable[[], None]]] = []

    def tick(self) -> None:
        """Let a moment pass."""
        time.sleep(TICK_S)
        self.installation.tend()
        now = time.monotonic()
        for entry in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(entry)
            entry[1]()
        if now > self._looked_at + LOOK_S:
            self._looked_at = now
            self._observe()

    def wait(self, condition: Callable[[], Any], within_s: float) -> Any:
        """Wait until something holds, and return it; what it is at the end of the time, otherwise."""
        give_up_at = time.monotonic() + within_s
        while not (seen := condition()) and time.monotonic() < give_up_at:
            self.tick()
        return seen

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.wait(lambda: False, seconds)

    def answer(self, future: Future[Any]) -> Any:
        """The result of a request, which gives up by itself."""
        self.wait(future.done, 120)
        return future.result(1)

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after a while."""
        self._later.append((time.monotonic() + seconds, act))

    @property
    def stillness_s(self) -> float:
        """Since the last sign of any stage."""
        return time.time() - max((sign.at for sign in self.signs), default=self._began)

    def settle(self) -> None:
        """End every effect that still lasts."""
        while self._later:
            self._later.pop()[1]()

    def prey(self, name: str | None = None, *, deadly: bool = True) -> list[Prey]:
        """Held stages, of a name, of workers that run; for `deadly` faults only workers whose stages can bear one."""
        workers = {slot.worker_id: slot for slot in self.installation.workers() if not slot.leaving}
        running = self.look.running()
        found = []
        for slot in workers.values():
            held = [stage for stage in running if stage.worker_id == slot.worker_id]
            if deadly and not all(self._can_bear(stage) for stage in held):
                continue
            found += [Prey(slot, stage) for stage in held if name in {None, stage.name} and stage.is_ripe]
        self.rng.shuffle(found)
        return found

    def all_can_bear(self) -> bool:
        """Whether an accident to everything that runs would end nothing for good."""
        return all(self._can_bear(stage) for stage in self.look.running())

    def strike(self, prey: Prey) -> list[uuid.UUID]:
        """Remember that a worker's stages are hit; returns them."""
        held = [stage for stage in self.look.running() if stage.worker_id == prey.slot.worker_id]
        self.struck |= {(stage.id, stage.attempt) for stage in held}
        return [stage.id for stage in held]

    def before_blow(self) -> float:
        """The instant of a blow that takes a while; looks first, so that nothing of before passes for a recovery."""
        self._observe()
        return time.time()

    def order_of(self, stage: RunningStage) -> Order | None:
        """The order that a stage belongs to; None for one whose acceptance its caller has not heard of yet."""
        return self.callers.orders.get(str(stage.job_id))

    def _can_bear(self, stage: RunningStage) -> bool:
        return stage.deaths <= MAX_DEATHS and (stage.id, stage.attempt) not in self.struck

    def _observe(self) -> None:
        now = time.time()
        rows = self.look.rows(UNFINISHED)
        self.unfinished = {str(row["job_id"]) for row in rows if row["job_state"] in {"queued", "running"}}
        for row in rows:
            self._watch_end(str(row["job_id"]), row["job_state"])
            state = (row["attempt"], row["step"], row["state"])
            before = self._seen.get(row["id"], (0, None, ""))
            self._seen[row["id"]] = state
            if state[0] > before[0]:
                self.signs.append(Sign(row["id"], now, "attempt"))
            elif state[1] is not None and state[1] != before[1]:
                self.signs.append(Sign(row["id"], now, "checkpoint"))
            elif state[2] != before[2] and state[2] in {"succeeded", "canceled", "failed"}:
                self.signs.append(Sign(row["id"], now, "end"))

    def _watch_end(self, job_id: str, state: str) -> None:
        end = self._ends.get(job_id)
        if end is not None and end != state:
            self.flips.append(f"job {job_id} was {end} and then {state}")
        if state not in {"queued", "running"}:
            self._ends[job_id] = state
