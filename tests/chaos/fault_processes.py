"""Faults of processes: killed, stopped, told to leave, one too many."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from tests.chaos.arena import Prey, Struck
from tests.chaos.installation import LEASE_S, WORKERS
from tests.chaos.proxies import Mode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.arena import Arena
    from tests.chaos.installation import Slot

EXTRA_WORKER_S = 18.0
UPLOAD_DELAY_S = 0.4
UPLOAD_BEGINS_S = 3.0
PUBLISHED_S = 30.0


def kill_engine(arena: Arena, stage: str) -> Struck | None:
    """kill -9 of the engine process in a stage."""
    for prey in arena.prey(stage):
        pid = arena.installation.engine_pid(prey.slot)
        if pid is not None:
            stages = arena.strike(prey)
            os.kill(pid, signal.SIGKILL)
            return Struck(stages, f"{prey.slot.name}, step {prey.stage.step} of {prey.stage.total}")
    return None


def kill_worker(arena: Arena, stage: str) -> Struck | None:
    """kill -9 of a worker in a stage."""
    for prey in arena.prey(stage):
        stages = arena.strike(prey)
        prey.slot.signal(signal.SIGKILL)
        return Struck(stages, f"{prey.slot.name}, step {prey.stage.step} of {prey.stage.total}")
    return None


def kill_dispatcher(arena: Arena, stage: str) -> Struck | None:
    """kill -9 of one dispatcher, or of both, while a stage runs."""
    if not arena.prey(stage, deadly=False):
        return None
    victims = arena.rng.sample(_dispatchers(arena), arena.rng.choice([1, 2]))
    for slot in victims:
        slot.signal(signal.SIGKILL)
    return Struck(detail=", ".join(slot.name for slot in victims))


def kill_api(arena: Arena, stage: str) -> Struck | None:
    """kill -9 of the API while a stage runs."""
    api = arena.installation.slots["api"]
    if api.pid is None or not arena.prey(stage, deadly=False):
        return None
    api.signal(signal.SIGKILL)
    return Struck()


def kill_before_publishing(arena: Arena) -> Struck | None:
    """The dispatchers stand still, a job is accepted, then API and dispatchers are killed: its hint is still unsent."""
    dispatchers = _dispatchers(arena)
    if len(dispatchers) < 2 or arena.installation.slots["api"].pid is None:
        return None
    for slot in dispatchers:
        slot.signal(signal.SIGSTOP)
    order = arena.answer(arena.callers.submit())
    for slot in (arena.installation.slots["api"], *dispatchers):
        slot.signal(signal.SIGKILL)
    return None if order is None else _until_published(arena, order.job_id)


def kill_after_publishing(arena: Arena) -> Struck | None:
    """A dispatcher has handed a hint to the broker, and dies before it could mark it."""
    proxy = arena.installation.proxies.proxies["valkey dispatcher"]
    if proxy.mode is not Mode.OPEN or len(_dispatchers(arena)) < 2:
        return None
    proxy.set(Mode.TRAP)
    order = arena.answer(arena.callers.submit())
    trapped = arena.wait(lambda: proxy.mode is Mode.DEAF, 4)
    for slot in _dispatchers(arena):
        slot.signal(signal.SIGKILL)
    proxy.set(Mode.OPEN)
    proxy.drop()
    return _until_published(arena, order.job_id) if trapped and order is not None else None


def term_during_checkpoint(arena: Arena) -> Struck | None:
    """SIGTERM while a checkpoint is on its way to the store, which is slow at that moment."""
    for prey in arena.prey(deadly=False):
        if prey.stage.step < 1 or prey.stage.name == "package" or prey.stage.asked:
            continue
        proxy = arena.installation.proxies.proxies[f"store {prey.slot.name}"]
        folder = _attempt_folder(arena, prey) / "checkpoints"
        before = _files(folder)
        proxy.set(Mode.SLOW, delay_s=UPLOAD_DELAY_S)
        if not arena.wait(lambda: _files(folder) - before, UPLOAD_BEGINS_S):  # noqa: B023 - used at once
            proxy.set(Mode.OPEN)
            return None
        stages = arena.strike(prey)
        prey.slot.signal(signal.SIGTERM)
        arena.later(1.0, partial(proxy.set, Mode.OPEN))
        return Struck(stages, f"{prey.slot.name}, {prey.stage.name}")
    return None


def term_worker(arena: Arena) -> Struck | None:
    """SIGTERM at any moment."""
    for prey in arena.prey(deadly=False):
        stages = arena.strike(prey)
        prey.slot.signal(signal.SIGTERM)
        return Struck(stages, f"{prey.slot.name}, {prey.stage.name}, step {prey.stage.step} of {prey.stage.total}")
    return None


def stop_worker_past_lease(arena: Arena) -> Struck | None:
    """SIGSTOP until after the lease has been given to somebody else, then SIGCONT: a zombie that goes on writing."""
    for prey in arena.prey():
        stages = arena.strike(prey)
        pid = arena.installation.engine_pid(prey.slot) if arena.rng.random() < 0.5 else None
        prey.slot.signal(signal.SIGSTOP)
        if pid is not None:
            _send(pid, signal.SIGSTOP)
        arena.later(LEASE_S + arena.rng.uniform(1, 4), partial(_wake, prey.slot, pid))
        return Struck(stages, f"{prey.slot.name}, {prey.stage.name}{', with its engine' if pid else ''}")
    return None


def hang_engine(arena: Arena) -> Struck | None:
    """SIGSTOP of the engine alone: its worker must find that nothing moves."""
    for prey in arena.prey():
        pid = arena.installation.engine_pid(prey.slot)
        if pid is not None and prey.stage.step >= 1:
            stages = arena.strike(prey)
            _send(pid, signal.SIGSTOP)
            return Struck(stages, f"{prey.slot.name}, {prey.stage.name}")
    return None


def race(arena: Arena) -> Struck | None:
    """One worker more, for a while: it takes part in every race for a stage, and leaves in good order."""
    extra = arena.installation.slots.get(f"worker-{WORKERS}")
    if extra is not None and extra.pid is not None:
        return None
    slot = arena.installation.add_worker(WORKERS)

    def dismiss() -> None:
        slot.wanted = False
        slot.signal(signal.SIGTERM)

    arena.later(EXTRA_WORKER_S, dismiss)
    return Struck(detail=slot.worker_id)


def kill_everything(arena: Arena) -> Struck | None:
    """A power cut: every service and every server at once, the database without a word of goodbye."""
    if not arena.prey() or not arena.all_can_bear():
        return None
    stages = [stage for prey in arena.prey() for stage in arena.strike(prey)]
    at = arena.before_blow()
    for slot in arena.installation.slots.values():
        slot.signal(signal.SIGKILL)
    arena.installation.restart_postgres(signal.SIGQUIT)
    arena.installation.restart_valkey()
    return Struck(list(dict.fromkeys(stages)), at=at)


def in_stage(act: Callable[[Arena, str], Struck | None], stage: str) -> Callable[[Arena], Struck | None]:
    """The fault in one stage."""
    return lambda arena: act(arena, stage)


def _dispatchers(arena: Arena) -> list[Slot]:
    return [
        slot
        for slot in arena.installation.slots.values()
        if slot.module == "worker.dispatcher" and slot.pid is not None
    ]


def _until_published(arena: Arena, job_id: str) -> Struck:
    """Wait until the hints of a job have left the outbox: that is what recovers here, whatever the workers do."""
    began = time.monotonic()
    waiting = "SELECT count(*) FROM outbox WHERE payload->>'job_id' = %s AND due_at <= now()"
    if not arena.wait(lambda: arena.look.value(waiting, (job_id,)) == 0, PUBLISHED_S):
        arena.unpublished.append(f"job {job_id} had a hint in the outbox for {PUBLISHED_S:.0f} s")
    return Struck(detail=f"job {job_id}", recovery_s=[time.monotonic() - began])


def _attempt_folder(arena: Arena, prey: Prey) -> Path:
    stage = prey.stage
    jobs = arena.installation.objects / "accounts" / str(stage.account_id) / "jobs"
    return jobs / str(stage.job_id) / stage.name / str(stage.attempt)


def _files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def _wake(slot: Slot, engine: int | None) -> None:
    if engine is not None:
        _send(engine, signal.SIGCONT)
    slot.signal(signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
