"""How many stages a second can be claimed: `python -m tests.benchmarks.claims [--help]`.

Claimers take stages of a long queue by the service's own function, each in a transaction of its own, and give nothing
back. Told are claims a second, the time of one, what Postgres reads for it, what it waits for, the processor time on
both sides, and whether the accounts came out even. The claimers share the machine with Postgres, and Python takes most
of it: what Postgres alone could do follows from its processor time a claim.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import event, text

from api.db import make_engine, session_factory, transaction
from api.jobs.candidates import find_any
from api.jobs.claiming import Claimant, claim_stage
from api.jobs.plan import JobKind
from deploy.local.postgres import Postgres
from deploy.local.processes import interrupted_by_signals
from tests.benchmarks.backlog import fill, held_by_account
from tests.benchmarks.figures import milliseconds
from tests.benchmarks.plans import explained, heard
from tests.support.servers import TestDatabases
from tests.support.vault import VAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

PROCESSES = 4
LOOK_EVERY_S = 0.02
WARM_UP = 15
LOOKS = 200
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print, a JSON line for each figure asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, nargs="+", default=[10_000], help="that wait; several for several runs")
    parser.add_argument("--accounts", type=int, nargs="+", default=[100], help="that they belong to")
    parser.add_argument("--claimers", type=int, nargs="+", default=[64], help="at once")
    parser.add_argument("--claims", type=int, default=2_000, help="in all")
    parser.add_argument("--quota", type=int, help="most jobs of an account that may run; without, no bound")
    parser.add_argument("--unsafe", action="store_true", help="a Postgres that syncs nothing to disk, as in the tests")
    parser.add_argument("--plans", action="store_true", help="the statements of one claim and how Postgres does them")
    parser.add_argument("--finding", action="store_true", help="what it takes to find the candidates, and no more")
    wanted = parser.parse_args()
    with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="duolora-claims-") as folder:
        server = Postgres(
            Path(folder) / "postgres", password="claims", log=Path(folder) / "postgres.log", durable=not wanted.unsafe
        )
        server.start()
        try:
            databases = TestDatabases(server)
            for stages in wanted.stages:
                for accounts in wanted.accounts:
                    for claimers in wanted.claimers:
                        with databases.fresh() as url:
                            _tell(url, wanted, stages=stages, accounts=accounts, claimers=claimers)
        finally:
            server.stop()


def _tell(url: str, wanted: argparse.Namespace, *, stages: int, accounts: int, claimers: int) -> None:
    engine = make_engine(url)
    try:
        sessions = session_factory(engine, VAULT)
        fill(engine, sessions, stages=stages, accounts=accounts, quota=wanted.quota)
        found: dict[str, Any] = {"stages": stages, "accounts": accounts, "quota": wanted.quota}
        if wanted.plans:
            found |= {"claim": _plans(engine, sessions)}
        elif wanted.finding:
            found |= {"finding": {str(most): _finding(sessions, most) for most in (16, 64)}}
        else:
            found |= {"synced": not wanted.unsafe, "claimers": claimers}
            found |= _race(engine, url, claimers=claimers, claims=wanted.claims)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
    finally:
        engine.dispose()


def _plans(engine: Engine, sessions: sessionmaker[Session]) -> list[dict[str, Any]]:
    """The statements of one claim, each with its time in Postgres and what it reads."""
    with heard(engine) as said, transaction(sessions) as session:
        assert claim_stage(session, _claimant("bench")) is not None
    return list(explained(engine, said))


def _finding(sessions: sessionmaker[Session], most: int) -> dict[str, float]:
    """One look for so many candidates, by a statement that Postgres knows already."""
    with transaction(sessions) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        for looks in (WARM_UP, LOOKS):
            began, cpu_s = time.perf_counter(), _cpu_s(pid)
            for _ in range(looks):
                find_any(session, kinds=list(JobKind), wanted=most)
        cpu_s, elapsed = _cpu_s(pid) - cpu_s, time.perf_counter() - began
    return {"postgres_ms": round(cpu_s / LOOKS * 1e3, 2), "ms": round(elapsed / LOOKS * 1e3, 2)}


def _race(engine: Engine, url: str, *, claimers: int, claims: int) -> dict[str, Any]:
    """Let claimers loose on the queue until they have made so many claims together."""
    processes = min(PROCESSES, claimers)
    threads = claimers // processes
    context = get_context("spawn")
    barrier = context.Barrier(processes + 1)
    results = context.Queue()
    started = [
        context.Process(target=_claim_many, args=(url, number, (threads, claims // processes), barrier, results))
        for number in range(processes)
    ]
    for process in started:
        process.start()
    barrier.wait()
    with _Watch(engine) as watch:
        shares = [results.get() for _ in started]
    figures = watch.per_claim(sum(len(share["ids"]) for share in shares))
    barrier.wait()
    for process in started:
        process.join()
    ids = [each for share in shares for each in share["ids"]]
    took = [each for share in shares for each in share["took"]]
    elapsed = max(share["ended"] for share in shares) - min(share["began"] for share in shares)
    asked = Counter[str]()
    for share in shares:
        asked.update(share["asked"])
    held = held_by_account(engine).values()
    return {
        "claims": len(ids),
        "claims_a_second": round(len(ids) / elapsed, 1),
        **milliseconds(took),
        "claimed_twice": len(ids) - len(set(ids)),
        "held_by_account": {"least": min(held), "most": max(held)},
        "python_ms": round(sum(share["cpu_s"] for share in shares) / len(ids) * 1e3, 2),
        "statements": round(asked.total() / len(ids), 1),
        "looks_for_candidates": round(asked["WITH"] / len(ids), 2),
        "given_back": round(asked["ROLLBACK"] / len(ids), 2),
        **figures,
    }


def _claim_many(url: str, number: int, share: tuple[int, int], barrier: Any, results: Any) -> None:
    """One process of claimers; `share` is how many they are and how many claims they are to make."""
    threads, claims = share
    engine = make_engine(url, pool_size=threads, application_name=f"claimer {number}", trusted_for_s=60)
    sessions = session_factory(engine)
    asked: Counter[str] = Counter()
    for moment in ("before_cursor_execute", "rollback_savepoint"):
        event.listen(engine, moment, lambda *said: asked.update([_first_word(said)]))
    left = iter(range(claims))
    with ThreadPoolExecutor(threads) as pool:
        together = threading.Barrier(threads)
        list(pool.map(lambda _: _connect(engine, together), range(threads)))
        barrier.wait()
        asked.clear()
        began, cpu_s = time.perf_counter(), time.process_time()
        told = list(pool.map(lambda thread: _claim_until(sessions, f"{number}-{thread}", left), range(threads)))
        ended, cpu_s = time.perf_counter(), time.process_time() - cpu_s
    results.put(
        {
            "ids": [stage for stages, _ in told for stage in stages],
            "took": [seconds for _, times in told for seconds in times],
            "began": began,
            "ended": ended,
            "cpu_s": cpu_s,
            "asked": asked,
        }
    )
    barrier.wait()  # Postgres forgets the processor time of a connection that is closed
    engine.dispose()


def _first_word(said: tuple[Any, ...]) -> str:
    """Of a statement; `ROLLBACK` for a savepoint that was given up, which comes without one."""
    statement = said[2] if len(said) > 3 else None
    return statement.split(maxsplit=1)[0].upper() if statement else "ROLLBACK"


def _connect(engine: Engine, together: threading.Barrier) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        together.wait()


def _claim_until(sessions: sessionmaker[Session], name: str, left: Iterator[int]) -> tuple[list[Any], list[float]]:
    """Claim for as long as there are claims left to make."""
    ids, took = [], []
    for _ in left:
        began = time.perf_counter()
        with transaction(sessions) as session:
            claimed = claim_stage(session, _claimant(name))
        took.append(time.perf_counter() - began)
        assert claimed is not None
        ids.append(claimed.stage_id)
    return ids, took


def _claimant(name: str) -> Claimant:
    return Claimant(worker_id=name, lease=timedelta(minutes=5))


class _Watch:
    """What a server does in the meantime: rows read, processor time, what its connections wait for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ended = threading.Event()
        self._waits: Counter[str] = Counter()
        self._looks = 0
        self._before: dict[str, float] = {}
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._before = self._read()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        time.sleep(1.1)  # a connection tells its counts at most once a second
        after = self._read()
        self._counted = {name: after[name] - self._before[name] for name in after}

    def per_claim(self, claims: int) -> dict[str, Any]:
        """The counts, for each of so many claims; the waits, in connections at a time."""
        return {
            "rows_read": round((self._counted["heap"]) / claims, 1),
            "index_entries_read": round(self._counted["index"] / claims, 1),
            "postgres_ms": round(self._counted["cpu_s"] / claims * 1e3, 2),
            "deadlocks": int(self._counted["deadlocks"]),
            "waiting_on_average": {
                name: round(count / max(self._looks, 1), 2) for name, count in self._waits.most_common(8)
            },
        }

    def _look(self) -> None:
        statement = text(
            "SELECT coalesce(wait_event_type || ' ' || wait_event, 'processor') FROM pg_stat_activity"
            " WHERE application_name LIKE 'claimer%' AND state <> 'idle'"
        )
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._ended.wait(LOOK_EVERY_S):
                self._waits.update(connection.scalars(statement))
                self._looks += 1

    def _read(self) -> dict[str, float]:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            heap = connection.scalar(text("SELECT sum(seq_tup_read + idx_tup_fetch)::float8 FROM pg_stat_user_tables"))
            index = connection.scalar(text("SELECT sum(idx_tup_read)::float8 FROM pg_stat_user_indexes"))
            deadlocks = connection.scalar(
                text("SELECT deadlocks::float8 FROM pg_stat_database WHERE datname = current_database()")
            )
            pids = connection.scalars(
                text("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'claimer%'")
            ).all()
        return {"heap": heap, "index": index, "deadlocks": deadlocks, "cpu_s": sum(map(_cpu_s, pids))}


def _cpu_s(pid: int) -> float:
    """Processor time that a process has taken, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND


if __name__ == "__main__":
    main()
