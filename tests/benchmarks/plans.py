"""What Postgres does to list and to claim while 1,000 jobs of ten accounts wait."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text

from api.db import make_engine, session_factory, transaction
from api.jobs import listing, repository
from tests.api.factories import make_account, make_job
from tests.benchmarks.figures import milliseconds
from tests.support.servers import TestDatabases, running_postgres
from tests.support.vault import VAULT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

ACCOUNTS = 10
JOBS_EACH = 100
CLAIMS = 100
JOBS_AT_ONCE = 4
WATCHED = frozenset({"jobs", "stages"})


def measure(folder: Path) -> dict[str, Any]:
    """Sequential scans of jobs or stages in the statements, and how long each takes."""
    folder.mkdir(parents=True)
    with running_postgres(folder) as server, TestDatabases(server).fresh() as url:
        engine = make_engine(url)
        try:
            return _measure(engine, session_factory(engine, VAULT))
        finally:
            engine.dispose()


def _measure(engine: Engine, sessions: sessionmaker[Session]) -> dict[str, Any]:
    accounts = [make_account(sessions, f"account {number}") for number in range(ACCOUNTS)]
    for account in accounts * JOBS_EACH:
        make_job(sessions, account)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    with _heard(engine) as said:
        lists = [_timed(lambda: _list(sessions, accounts[0])) for _ in range(CLAIMS)]
        listed = list(said)
        said.clear()
        _claim(sessions)
        claimed = list(said)
        said.clear()
        _claim(sessions, JOBS_AT_ONCE)
        together = list(said)
    groups = [_timed(lambda: _claim(sessions, JOBS_AT_ONCE)) for _ in range(CLAIMS // JOBS_AT_ONCE)]
    claims = [_timed(lambda: _claim(sessions)) for _ in range(CLAIMS)]
    return {
        "queued": ACCOUNTS * JOBS_EACH,
        "list": milliseconds(lists) | {"sequential": _sequential(engine, listed[:1])},
        "claim": milliseconds(claims) | {"statements": len(claimed), "sequential": _sequential(engine, claimed)},
        "claim_of_four": milliseconds(groups)
        | {"statements": len(together), "sequential": _sequential(engine, together)},
    }


def _list(sessions: sessionmaker[Session], account: Any) -> None:
    with transaction(sessions) as session:
        jobs, _ = listing.list_jobs(session, account_id=account, after=None, limit=20)
        assert len(jobs) == 20


def _claim(sessions: sessionmaker[Session], jobs: int = 1) -> None:
    claimant = repository.Claimant(worker_id="bench", lease=timedelta(minutes=5), pairs=jobs > 1, jobs_at_once=jobs)
    with transaction(sessions) as session:
        claimed = repository.claim_stage(session, claimant)
        assert claimed is not None
        assert len(claimed.by_job) == jobs


def _timed(act: Any) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextmanager
def _heard(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """Every statement that goes to the database, with its values; of one for several rows the first row's."""
    said: list[tuple[str, Any]] = []

    def hear(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        said.append((statement, values[0] if isinstance(values, list) else values))

    event.listen(engine, "before_cursor_execute", hear)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", hear)


def _sequential(engine: Engine, said: list[tuple[str, Any]]) -> list[str]:
    """The statements' sequential scans of the large tables."""
    found = []
    with engine.connect() as connection:
        raw = connection.connection.cursor()
        for statement, values in said:
            if not statement.lstrip().upper().startswith(("SELECT", "WITH", "UPDATE")):
                continue
            raw.execute(f"EXPLAIN (FORMAT JSON) {statement}", values)
            found += [
                f"{node['Relation Name']}: {statement[:80]}"
                for node in _nodes(raw.fetchone()[0][0]["Plan"])
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] in WATCHED
            ]
    return found


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)
