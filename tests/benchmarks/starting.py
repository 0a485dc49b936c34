"""From POST /jobs to a running job, with a worker that has nothing else to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tests.benchmarks.figures import caller, database, milliseconds, submit

if TYPE_CHECKING:
    import psycopg

    from deploy.local.stack import Stack

JOBS = 25
WARM_UP = 3
"""Jobs that are not counted: the first ones pay for connections and imports."""
REST_S = 0.3
"""From the end of a job to the next: so long the worker has been idle."""
PATIENCE_S = 60.0


def measure(stack: Stack) -> dict[str, Any]:
    """A POST's duration, and when everybody could see its job running, counted from the POST's beginning."""
    posts, starts, waits = [], [], []
    with caller(stack) as client, database(stack) as listener, database(stack) as reader:
        listener.execute("LISTEN duolora_events")
        for number in range(WARM_UP + JOBS):
            began = time.perf_counter()
            job_id = submit(client)
            posted = time.perf_counter()
            running = _when(listener, reader, job_id, "started_at IS NOT NULL")
            if number >= WARM_UP:
                posts.append(posted - began)
                starts.append(max(running, posted) - began)
                waits.append(max(running - posted, 0.0))
            _when(listener, reader, job_id, "finished_at IS NOT NULL")
            time.sleep(REST_S)
    post, start = milliseconds(posts), milliseconds(starts)
    ratio = round(start["p50_ms"] / post["p50_ms"], 2)
    figures = {"post": post, "post_to_running": start, "answer_to_running": milliseconds(waits)}
    return {"jobs": JOBS, **figures, "running_per_post": ratio}


def _when(listener: psycopg.Connection, reader: psycopg.Connection, job_id: str, condition: str) -> float:
    """When a job was first seen to fulfil a condition: looked at whenever an event of it is announced."""
    deadline = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < deadline:
        seen = time.perf_counter()
        statement = f"SELECT 1 FROM jobs WHERE id = %s AND {condition}"  # noqa: S608 - ours
        if reader.execute(statement, (job_id,)).fetchone() is not None:
            return seen
        list(listener.notifies(timeout=0.02, stop_after=1))
    raise TimeoutError(f"job {job_id}: no {condition}")
