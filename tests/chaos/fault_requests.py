"""What callers, receivers and stray messages do at the worst moment."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import httpx

from tests.chaos.arena import Struck
from tests.chaos.receiver import Manner
from worker.app import QUEUE, TASK, make_app

if TYPE_CHECKING:
    from tests.chaos.arena import Arena, Prey
    from tests.chaos.callers import Order

BEGAN_LAST = "SELECT attempt > 0 FROM stages WHERE job_id = %s ORDER BY ordinal DESC LIMIT 1"
HOUR_S = 3.6
"""An hour of the webhooks' schedule, by `WEBHOOK_TIME_SCALE`."""
COPIES = 5


def cancel(arena: Arena, stage: str) -> Struck | None:
    """The owner cancels while a stage runs."""
    for prey in arena.prey(stage, deadly=False):
        order = _untouched(arena, prey)
        if order is not None:
            return _cancel(arena, order)
    return None


def cancel_after_death(arena: Arena) -> Struck | None:
    """The owner cancels a job whose worker has just been killed: only the database can settle it."""
    for prey in arena.prey():
        order = _untouched(arena, prey)
        if order is not None:
            arena.strike(prey)
            prey.slot.signal(signal.SIGKILL)
            return _cancel(arena, order)
    return None


def stop_early(arena: Arena, stage: str) -> Struck | None:
    """The owner asks a job to finish with what it has."""
    for prey in arena.prey(stage, deadly=False):
        order = _untouched(arena, prey)
        if order is None or prey.stage.step < 1:
            continue
        answer = arena.answer(arena.callers.ask(order, "stop"))
        if answer is not None and answer.is_success:
            return Struck(detail=f"job {order.job_id}, step {prey.stage.step} of {prey.stage.total}")
    return None


def retry(arena: Arena) -> Struck | None:
    """The owner of a canceled job orders it again; it goes on from its checkpoints."""
    asked = {str(row["retry_of"]) for row in arena.look.rows("SELECT retry_of FROM jobs WHERE retry_of IS NOT NULL")}
    for row in arena.look.rows("SELECT id FROM jobs WHERE state = 'canceled'"):
        order = arena.callers.orders.get(str(row["id"]))
        if order is None or order.job_id in asked:
            continue
        again = arena.answer(arena.callers.retry(order))
        if again is not None and again.job_id != order.job_id:
            return Struck(detail=f"job {order.job_id} again as {again.job_id}")
    return None


def duplicate_hints(arena: Arena) -> Struck | None:
    """Hints of stages that run, wait or are done, several times each."""
    rows = arena.look.rows("SELECT id, job_id FROM stages ORDER BY random() LIMIT 8")
    if not rows or not arena.unfinished:
        return None
    app = make_app(arena.installation.valkey.url)
    try:
        for row in rows * COPIES:
            hint = {"stage_id": str(row["id"]), "job_id": str(row["job_id"])}
            app.send_task(TASK, kwargs=hint, queue=QUEUE, retry=False)
    finally:
        app.close()
    return Struck(detail=f"{len(rows) * COPIES} hints")


def receiver_in(arena: Arena, manner: Manner) -> Struck | None:
    """The receiver of the webhooks is down for an hour of their schedule, slow, or elsewhere, as a job ends."""
    if arena.receiver.manner is not Manner.WELL or not (arena.prey("package", deadly=False)):
        return None
    arena.receiver.manner = manner

    def recover() -> None:
        arena.receiver.manner = Manner.WELL

    arena.later(HOUR_S if manner is Manner.DOWN else HOUR_S * 0.7, recover)
    return Struck()


def _cancel(arena: Arena, order: Order) -> Struck | None:
    """Cancel; what was accepted before the last stage began must end so, for no stage begins after it."""
    order.allowed |= {"canceled"}
    answer = arena.answer(arena.callers.ask(order, "cancel"))
    if answer is None or answer.status_code not in {httpx.codes.OK, httpx.codes.ACCEPTED}:
        return None
    if not arena.look.value(BEGAN_LAST, (order.job_id,)):
        order.allowed = {"canceled"}
    return Struck(detail=f"job {order.job_id}, answered {answer.status_code}")


def _untouched(arena: Arena, prey: Prey) -> Order | None:
    """The order of a stage, unless its owner has asked for its end already."""
    return None if prey.stage.asked else arena.order_of(prey.stage)
