"""How many small transactions a second Postgres commits, with NOTIFY and without: `python -m tests.benchmarks.commits`.

The loops run inside the server, so that nothing but Postgres and its disk is measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import create_engine, text

from deploy.local.postgres import Postgres
from deploy.local.processes import interrupted_by_signals

COMMITS = 1_600
CONNECTIONS = (1, 8, 32)
NOTIFY = "PERFORM pg_notify('duolora_events', nth::text);"


def main() -> None:
    """Measure and print, a JSON line for each number of connections."""
    with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix="duolora-commits-") as folder:
        server = Postgres(Path(folder) / "postgres", password="commits", log=Path(folder) / "postgres.log")
        server.start()
        try:
            for connections in CONNECTIONS:
                rates = {name: _rate(server, connections, then) for name, then in (("plain", ""), ("notify", NOTIFY))}
                sys.stdout.write(json.dumps({"connections": connections, "commits_a_second": rates}) + "\n")
        finally:
            server.stop()


def _rate(server: Postgres, connections: int, then: str) -> int:
    each = COMMITS // connections
    write = f"INSERT INTO written VALUES (nth); {then} COMMIT;"  # noqa: S608 - ours
    loop = text(f"DO $$ BEGIN FOR nth IN 1..{each} LOOP {write} END LOOP; END $$")
    engine = create_engine(server.url("postgres"), pool_size=connections, isolation_level="AUTOCOMMIT")

    def commit(_: int) -> None:
        with engine.connect() as connection:
            connection.execute(loop)

    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS written (nth integer)"))
    with ThreadPoolExecutor(connections) as pool:
        began = time.perf_counter()
        list(pool.map(commit, range(connections)))
        elapsed = time.perf_counter() - began
    engine.dispose()
    return round(each * connections / elapsed)


if __name__ == "__main__":
    main()
