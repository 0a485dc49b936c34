"""GET /jobs/{id} against a bare FastAPI handler that reads the same row, asked in turn."""

from __future__ import annotations

import os
import sys
import time
import uuid
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import select

from api.db import make_engine, session_factory
from api.jobs.models import Job
from deploy.local.processes import LOOPBACK, accepts, free_port, spawn
from tests.benchmarks.figures import caller, database, milliseconds, submit

if TYPE_CHECKING:
    from deploy.local.stack import Stack

PAIRS = 200
WARM_UP = 20
PORT = "BARE_PORT"


def measure(stack: Stack) -> dict[str, Any]:
    """The ratio of the medians, for a job that waits and for one that has its results."""
    port = free_port()
    bare = spawn(
        "bare",
        [sys.executable, "-m", "tests.benchmarks.reading"],
        log=stack.logs / "bare.log",
        env=os.environ | stack.env | {PORT: str(port)},
        cwd=Path(__file__).parents[2],
    )
    try:
        bare.wait_ready(lambda: accepts(port), 30)
        with caller(stack) as client, httpx.Client(base_url=f"http://{LOOPBACK}:{port}") as plain:
            done = _ended(stack, client)
            return {
                "with_results": _compare(client, plain, done),
                "queued": _compare(client, plain, _waiting(stack, client)),
            }
    finally:
        bare.stop()


def _compare(client: httpx.Client, plain: httpx.Client, job_id: str) -> dict[str, Any]:
    ours, theirs = [], []
    for number in range(WARM_UP + PAIRS):
        for seconds, connection in ((ours, client), (theirs, plain)):
            began = time.perf_counter()
            connection.get(f"/jobs/{job_id}").raise_for_status()
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - began)
    ratio = round(median(ours) / median(theirs), 3)
    return {"ours": milliseconds(ours), "bare": milliseconds(theirs), "ratio": ratio}


def _ended(stack: Stack, client: httpx.Client) -> str:
    job_id = submit(client)
    while client.get(f"/jobs/{job_id}").json()["state"] != "succeeded":
        stack.check()
        time.sleep(0.1)
    return job_id


def _waiting(stack: Stack, client: httpx.Client) -> str:
    """A job that no worker takes: its stages are due tomorrow."""
    job_id = submit(client)
    while client.get(f"/jobs/{job_id}").json()["state"] != "succeeded":
        time.sleep(0.1)
    with database(stack) as connection:
        connection.execute("UPDATE stages SET state = 'waiting', finished_at = NULL WHERE job_id = %s", (job_id,))
        connection.execute(
            "UPDATE jobs SET state = 'queued', started_at = NULL, finished_at = NULL WHERE id = %s", (job_id,)
        )
    return job_id


def _bare() -> FastAPI:
    """What FastAPI and SQLAlchemy cost by themselves."""
    sessions = session_factory(make_engine(os.environ["DATABASE_URL"]))
    app = FastAPI()

    @app.get("/jobs/{job_id}")
    def read(job_id: str) -> dict[str, Any]:
        with sessions.begin() as session:
            statement = select(Job.__table__).where(Job.__table__.c.id == uuid.UUID(job_id))
            return dict(session.execute(statement).mappings().one())

    return app


if __name__ == "__main__":
    uvicorn.run(_bare(), host=LOOPBACK, port=int(os.environ[PORT]), log_level="warning", access_log=False)
