"""500 listeners to the events of jobs on one API process: does everybody hear, how late, and what does it cost."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.benchmarks.figures import caller, database, milliseconds, submit

if TYPE_CHECKING:
    import psycopg

    from deploy.local.stack import Stack

LISTENERS = 500
JOBS = 10
EVENTS = 20
PAUSE_S = 0.25
PATIENCE_S = 30.0
OPENING = 50
"""Connections that are opened at once."""


def measure(stack: Stack) -> dict[str, Any]:
    """Latency from an event to each listener, for one listener and for all; threads and memory before and during."""
    with caller(stack) as client, database(stack) as connection:
        jobs = [submit(client) for _ in range(JOBS)]
        _hold(connection, jobs)
        pid = next(child.process.pid for child in stack._children if child.name == "api")
        before = _cost(pid)
        alone = asyncio.run(_listen(stack, connection, jobs[:1], 1))
        together = asyncio.run(_listen(stack, connection, jobs, LISTENERS, cost=lambda: _cost(pid)))
    return {
        "one": alone,
        f"{LISTENERS}": together,
        "before": before,
        "latency_ratio": round(together["latency"]["p95_ms"] / alone["latency"]["p95_ms"], 2),
    }


def _hold(connection: psycopg.Connection, jobs: list[str]) -> None:
    """Wait until the jobs have ended, then let them look as if they ran: events to be told of are all made here."""
    deadline = time.monotonic() + PATIENCE_S
    count = "SELECT count(*) FROM jobs WHERE finished_at IS NULL"
    while connection.execute(count).fetchone() != (0,) and time.monotonic() < deadline:
        time.sleep(0.1)
    connection.execute("DELETE FROM events WHERE type <> 'job.queued'")
    connection.execute("UPDATE jobs SET state = 'running', finished_at = NULL")


async def _listen(
    stack: Stack, connection: psycopg.Connection, jobs: list[str], number: int, *, cost: Any = None
) -> dict[str, Any]:
    latencies: list[float] = []
    ready = asyncio.Semaphore(0)
    gate = asyncio.Semaphore(OPENING)
    listeners = [
        asyncio.create_task(_hear(stack, jobs[place % len(jobs)], latencies, ready, gate, company=number))
        for place in range(number)
    ]
    began = time.perf_counter()
    for _ in range(number):
        await asyncio.wait_for(ready.acquire(), PATIENCE_S)
    opened = time.perf_counter() - began
    for _ in range(EVENTS):
        for job in jobs:
            data = json.dumps({"sent": time.time(), "to": number})
            connection.execute("INSERT INTO events (job_id, type, data) VALUES (%s, 'job.progress', %s)", (job, data))
        await asyncio.sleep(PAUSE_S)
    expected = EVENTS * number
    give_up_at = time.monotonic() + PATIENCE_S
    while len(latencies) < expected and time.monotonic() < give_up_at:
        await asyncio.sleep(0.05)
    figures: dict[str, Any] = {"heard": len(latencies), "sent_to_them": expected, "opened_in_s": round(opened, 2)}
    if cost is not None:
        figures["during"] = cost()
    for listener in listeners:
        listener.cancel()
    await asyncio.gather(*listeners, return_exceptions=True)
    return figures | {"latency": milliseconds(latencies)}


async def _hear(
    stack: Stack, job: str, latencies: list[float], ready: asyncio.Semaphore, gate: asyncio.Semaphore, *, company: int
) -> None:
    """One listener, by hand: a client library for each would measure itself."""
    address = urlsplit(stack.api_url)
    async with gate:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"GET /jobs/{job}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.owner.api_key}\r\n\r\n"
        writer.write(head.encode())
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"no stream: {status!r}")
        while b"job.queued" not in await reader.readline():  # replayed to everybody: the stream is open
            pass
    ready.release()
    try:
        while line := await reader.readline():
            if line.startswith(b"data:") and b"sent" in line:
                data = json.loads(line[5:])["data"]
                if data["to"] == company:  # the measurement before left some, which are replayed
                    latencies.append(time.time() - data["sent"])
    finally:
        writer.close()


def _cost(pid: int) -> dict[str, int]:
    """Threads, and resident memory in KiB."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {"threads": int(lines["Threads"]), "rss_kib": int(lines["VmRSS"].split()[0])}
