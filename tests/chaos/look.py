"""What the harness sees in the database, past every proxy; a restart of Postgres only delays it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy import make_url

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

PATIENCE_S = 20.0
RUNNING = """
SELECT s.id, s.job_id, s.account_id, s.name, s.worker_id, s.attempt, s.started_at, s.failures, s.failure_counts,
       s.checkpoint, s.progress, j.cancel_requested_at IS NOT NULL OR j.stop_requested_at IS NOT NULL AS asked
FROM stages s JOIN jobs j ON j.id = s.job_id WHERE s.state = 'running'
"""


@dataclass(frozen=True)
class RunningStage:
    """A stage that a worker holds, as its row says."""

    id: uuid.UUID
    job_id: uuid.UUID
    account_id: uuid.UUID
    name: str
    worker_id: str
    attempt: int
    started_at: datetime
    failures: int
    failure_counts: dict[str, int]
    checkpoint: dict[str, Any] | None
    progress: dict[str, Any] | None
    asked: bool
    """Its owner wants it to stop."""

    @property
    def deaths(self) -> int:
        """Accidents since it last got further: the poison rule ends it at three."""
        return self.failure_counts.get("death", self.failures if not self.failure_counts else 0)

    @property
    def step(self) -> int:
        return int((self.progress or {}).get("step") or 0)

    @property
    def total(self) -> int:
        return int((self.progress or {}).get("total") or 0)

    @property
    def is_ripe(self) -> bool:
        """Whether a fault may hit it now: most wait until it is on its way, one in three is hit wherever it is."""
        return self.step >= 1 or self.id.int % 3 == 0

    @property
    def checkpoint_step(self) -> int:
        return int((self.checkpoint or {}).get("step") or 0)


class Look:
    """One connection to the database, made anew when it breaks."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """A connection of the caller's own."""
        dsn = make_url(self._url()).set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(
            dsn, autocommit=True, row_factory=dict_row, connect_timeout=5, application_name="chaos harness"
        )

    def rows(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Ask once more while the database comes back."""
        give_up_at = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self.connect()
                cursor = self._connection.execute(statement, values or None)  # type: ignore[arg-type]
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(0.1)

    def value(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
        """The first column of the first row, None without rows."""
        for row in self.rows(statement, values):
            return next(iter(row.values()))
        return None

    def running(self) -> list[RunningStage]:
        """All stages that are held."""
        return [RunningStage(**row) for row in self.rows(RUNNING)]

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
