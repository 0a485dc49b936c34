"""Rows out of a database and into one, by COPY: all tables as of one instant, while the service goes on."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql
from sqlalchemy import make_url

import migrations
from api.vault import PREFIX
from deploy.backup.folder import BackupError, Table, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.backup.folder import BackupFolder, Manifest

LEFT_OUT = ("alembic_version", "workers")
"""The revision is in the manifest; which workers live is for those to say."""
GAP = 1_000_000
"""Numbers of rows that may have been given out after the backup, and are not to be given out again: callers remember
the number of the last event that they saw."""

_COLUMNS = """
SELECT c.table_name, array_agg(c.column_name::text ORDER BY c.ordinal_position)
FROM information_schema.columns c JOIN information_schema.tables t USING (table_schema, table_name)
WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE' AND c.table_name <> ALL(%s)
GROUP BY c.table_name
"""
_REFERENCES = """
SELECT r.conrelid::regclass::text, r.confrelid::regclass::text FROM pg_constraint r
WHERE r.contype = 'f' AND r.connamespace = 'public'::regnamespace AND r.conrelid <> r.confrelid
"""
_SEQUENCES = "SELECT sequencename::text, last_value FROM pg_sequences WHERE schemaname = 'public'"
_NOW = """SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""
_NAMED = """
SELECT files.key FROM jobs JOIN (
    SELECT job_id, key FROM artifacts UNION ALL SELECT job_id, key FROM job_images
    UNION ALL SELECT job_id, key FROM job_loras) AS files ON files.job_id = jobs.id
WHERE jobs.deletion_requested_at IS NULL
UNION SELECT key FROM uploads WHERE state = 'ready' AND key IS NOT NULL
UNION SELECT file->>'key' FROM loras, jsonb_array_elements(loras.files) AS file WHERE loras.state = 'ready'
"""
"""Objects that must be there. Not checkpoints: a stage whose checkpoint is gone begins anew."""
_SEALED_WITH = """
SELECT DISTINCT split_part(secret, ':', 2) FROM (
    SELECT webhook_secret AS secret FROM accounts UNION ALL SELECT secret FROM webhook_endpoints
    UNION ALL SELECT previous_secret FROM webhook_endpoints) AS secrets
WHERE starts_with(secret, %s)
"""
_OTHERS = """
SELECT DISTINCT coalesce(nullif(application_name, ''), 'a nameless one') FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@dataclass(frozen=True)
class Rows:
    """What was written of a database."""

    revision: str
    taken_at: str
    tables: tuple[Table, ...]
    sequences: dict[str, int]
    named: frozenset[str]
    """Keys of objects that the rows point to."""
    sealed_with: tuple[str, ...]
    """Names of the keys that have sealed secrets in them."""


def dump(url: str, folder: BackupFolder) -> Rows:
    """Write all rows as of one instant.

    Raises:
        BackupError: the database was never migrated, or not to this version.
        psycopg.Error: it cannot be read.
    """
    with _connected(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        revision = _revision(connection)
        if revision is None:
            raise BackupError("there is nothing to back up: no DuoLoRA was ever in this database")
        if not migrations.serves(revision):
            raise BackupError(f"the database is at revision {revision}: bring it to this version first")
        tables = tuple(_copy_out(connection, folder, *table) for table in _tables(connection))
        return Rows(
            revision=revision,
            taken_at=str(_value(connection, _NOW)),
            tables=tables,
            sequences={name: last for name, last in connection.execute(_SEQUENCES) if last is not None},
            named=_named(connection),
            sealed_with=tuple(sorted(name for (name,) in connection.execute(_SEALED_WITH, [PREFIX]))),
        )


def named_now(url: str) -> frozenset[str]:
    """Return the keys of objects that rows point to at this moment."""
    with _connected(url) as connection:
        return _named(connection)


def check_empty(url: str) -> None:
    """See that a database may be replaced.

    Raises:
        BackupError: somebody is connected to it, or it holds jobs or files.
    """
    with _connected(url) as connection:
        if others := [name for (name,) in connection.execute(_OTHERS)]:
            raise BackupError(f"the database is in use by {', '.join(others)}; stop the API, dispatcher and workers")
        there = {name for name, _ in _tables(connection)}
        for table in sorted(there & {"jobs", "loras", "uploads"}):
            if _value(connection, sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(table))):
                raise BackupError(f"the database has {table} already; restore into an empty one")


def load(url: str, folder: BackupFolder, manifest: Manifest) -> None:
    """Fill the tables of an empty database that is at the backup's revision, in one transaction."""
    with _connected(url) as connection:
        for table in manifest.tables:
            _copy_in(connection, folder, table)
        for name, last in manifest.sequences.items():
            connection.execute("SELECT setval(%s, %s)", (name, last + GAP))


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, connect_timeout=10, application_name="duolora backup") as connection:
        yield connection


def _revision(connection: psycopg.Connection[Any]) -> str | None:
    if _value(connection, "SELECT to_regclass('public.alembic_version')") is None:
        return None
    revision = _value(connection, "SELECT version_num FROM alembic_version")
    return None if revision is None else str(revision)


def _tables(connection: psycopg.Connection[Any]) -> list[tuple[str, list[str]]]:
    """Return tables and their columns, those that others refer to first."""
    columns: dict[str, list[str]] = dict(connection.execute(_COLUMNS, [list(LEFT_OUT)]).fetchall())
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(sorted(columns), ()))
    for table, target in connection.execute(_REFERENCES):
        order.add(table, target)
    return [(name, columns[name]) for name in order.static_order()]


def _named(connection: psycopg.Connection[Any]) -> frozenset[str]:
    return frozenset(key for (key,) in connection.execute(_NAMED))


def _copy_out(connection: psycopg.Connection[Any], folder: BackupFolder, name: str, columns: list[str]) -> Table:
    path = folder.table(name)
    statement = sql.SQL("COPY {} ({}) TO STDOUT").format(sql.Identifier(name), _names(columns))
    with connection.cursor() as cursor:
        with path.open("wb") as file, cursor.copy(statement) as rows:
            for chunk in rows:
                file.write(chunk)
        return Table(name=name, columns=tuple(columns), rows=cursor.rowcount, sha256=sha256_of(path))


def _copy_in(connection: psycopg.Connection[Any], folder: BackupFolder, table: Table) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), _names(table.columns))
    with connection.cursor() as cursor, folder.table(table.name).open("rb") as file:
        with cursor.copy(statement) as rows:
            while chunk := file.read(1 << 20):
                rows.write(chunk)
        if cursor.rowcount != table.rows:
            raise BackupError(f"{table.name} took {cursor.rowcount} rows of {table.rows}")


def _names(columns: list[str] | tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _value(connection: psycopg.Connection[Any], statement: LiteralString | sql.Composed) -> object:
    """Return the first column of the first row."""
    row = connection.execute(statement).fetchone()
    return None if row is None else row[0]
