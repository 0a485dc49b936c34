"""The database's revisions, and how to bring a database to the newest one from code.

Revision files are named date_slug; the slug ends in `pre` or `post`: applied before or after the code is deployed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

LOCK_KEY = 0x64756F6C6F7261
"""Key of the advisory lock: two deployments must not migrate at once. The letters "duolora"."""

LOCK_TIMEOUT_MS = 10_000
"""Longest a revision may wait for a table's lock; behind it every other query would queue."""


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


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database at a `postgresql+psycopg://` URL to a revision.

    Whoever comes second waits for the first and finds nothing left to do.
    """
    _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str = "base") -> None:
    """Take the database back to a revision."""
    _run(url, lambda config: command.downgrade(config, revision))


def _run(url: str, act: Callable[[Config], None]) -> None:
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
            connection.execute(text(f"SET lock_timeout = {LOCK_TIMEOUT_MS}"))
            connection.commit()
            config = _config()
            config.attributes["connection"] = connection
            act(config)
            connection.commit()
    finally:
        engine.dispose()
