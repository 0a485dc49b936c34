"""The database's revisions, and how to bring a database to the newest one from code.

Revision files are named date_slug; the slug ends in `pre` or `post`. A `pre` only adds, and is applied while the code
of the version before still runs; a `post` takes away what no code uses any more, and is applied when that is gone.
"""

from __future__ import annotations

import functools
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

LOCK_KEY = 0x64756F6C6F7261
"""Key of the advisory lock: two deployments must not migrate at once. The letters "duolora"."""
OTHERS_S = 900.0
"""How long a deployment waits for another one that migrates."""
LOOK_S = 0.2

LOCK_TIMEOUT_MS = 3_000
"""Longest a revision may wait for a table's lock; behind it every other query queues."""
IN_THE_WAY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
"""How Postgres says that others hold what a revision needs, or wait for what it holds."""
LOCK_TRIES = 10
PAUSE_S = 1.0
"""Between two tries, so that those who queued get through."""
STATEMENT_TIMEOUT_MS = 60_000
"""Longest a statement of a revision may take: it may hold a lock that stops the service. Indexes on tables in use are
built without one (`migrations.indexes`)."""


class NewerDatabase(Exception):
    """A database stands at a revision that this code does not know: a newer version brought it there."""


class MigrationBlocked(Exception):
    """Somebody migrates already, or tables were in use all the time; nothing is half done, so try again."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """Return the newest revision that this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("there is no revision")
    return revision


def current(connection: Connection) -> str | None:
    """Return the revision that a database stands at, or None for an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def knows(revision: str) -> bool:
    """Say whether this code has a revision."""
    return revision in _revisions()[0]


def serves(revision: str | None) -> bool:
    """Say whether this code works on a database at a revision.

    It does from its newest `pre` on: a `post` comes after the code. And it does at a revision that it does not know,
    since a newer version only adds before this one is gone.
    """
    known, served = _revisions()
    return revision is not None and (revision in served or revision not in known)


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at a `postgresql+psycopg://` URL to a revision; each one is committed by itself.

    Whoever comes second waits for the first and finds nothing left to do.

    Raises:
        NewerDatabase: a newer version was here; nothing is done, and nothing needs to be.
        MigrationBlocked: others held what is needed for too long. What was committed stays; try the rest again.
    """
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str = "base") -> None:
    """Take the database back to a revision. Raises as `upgrade`."""
    _run(url, lambda config: command.downgrade(config, revision))


@functools.cache
def _revisions() -> tuple[frozenset[str], frozenset[str]]:
    """Return all revisions that there are, and those that this code works on."""
    served: list[str] = []
    newest_first = list(ScriptDirectory.from_config(_config()).walk_revisions())
    for script in newest_first:
        served.append(script.revision)
        if not Path(script.path).stem.endswith("_post"):
            break
    return frozenset(script.revision for script in newest_first), frozenset(served)


def _run(url: str, act: Callable[[Config], None], config: Config | None = None) -> None:
    config = _config() if config is None else config
    limits = f"-c lock_timeout={LOCK_TIMEOUT_MS} -c statement_timeout={STATEMENT_TIMEOUT_MS}"
    engine = create_engine(url, poolclass=NullPool, connect_args={"options": limits, "application_name": "migrations"})
    try:
        with engine.connect() as connection, _alone(connection):
            found = current(connection)
            connection.commit()  # or the revisions would not be transactions of their own
            known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
            if found is not None and found not in known:
                raise NewerDatabase(
                    f"the database is at revision {found}, which this version does not know: a newer one was here"
                )
            config.attributes["connection"] = connection
            _patiently(connection, functools.partial(act, config))
    finally:
        engine.dispose()


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Hold the advisory lock until the connection ends.

    It is asked for again and again instead of waited for: who waits inside a statement holds a snapshot, and an index
    that is built concurrently waits for that.
    """
    give_up_at = time.monotonic() + OTHERS_S
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
        connection.commit()
        if time.monotonic() > give_up_at:
            raise MigrationBlocked(f"another deployment has been migrating this database for {OTHERS_S:.0f} s")
        time.sleep(LOOK_S)
    connection.commit()
    yield


def _patiently(connection: Connection, act: Callable[[], None]) -> None:
    """Do it again where a table's lock was not to be had; the revisions before that are done."""
    for left in reversed(range(LOCK_TRIES)):
        try:
            act()
            connection.commit()
        except OperationalError as error:
            connection.rollback()
            if not isinstance(error.orig, IN_THE_WAY):
                raise
            if not left:
                raise MigrationBlocked(f"tables were in use all the time: {error.orig}") from error
            time.sleep(PAUSE_S)
        else:
            return
