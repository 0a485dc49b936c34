"""The one task: a hint arrived, so look into the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.app import QUEUE, TASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from worker.loop import IdleGate


def register(app: Celery, gate: IdleGate, wake: Callable[[], None]) -> None:
    """Give the application its task.

    A busy worker must not keep a hint that an idle one could act on: it puts the hint back and, by not returning, takes
    no other. The payload names the stage for whoever reads the queue; the claim ignores it.
    """

    @app.task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def run_stage(**hint: str) -> None:
        if gate.is_idle():
            gate.pass_on(wake)
            return
        try:
            app.send_task(TASK, kwargs=hint, queue=QUEUE, retry=False)
        finally:
            gate.wait_idle()
