"""Engine, sessions and the declarative base: how rows are reached, not which.

Postgres is the only dialect. Nothing here knows HTTP, so that the worker shares it.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import DateTime, Enum, MetaData, Text, create_engine, event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from api.vault import carried

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from api.vault import Vault

NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
"""Every constraint has a predictable name, so that migrations can speak of it."""

LIVENESS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""libpq's options, in seconds, by which each of our connections notices that the server has gone."""
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000
"""A process that stands still inside a transaction loses it: its row locks must not hold up the others."""
DEAD_PEER_TIMEOUT_MS = 15_000
"""How long a connection may lack an acknowledgement before it counts as cut."""
STATEMENT_TIMEOUT_MS = 30_000
"""Nothing the service asks of Postgres may take longer; a runaway query must not hold row locks."""

Document = dict[str, Any]
"""A JSON object at the border of the database."""


class Base(DeclarativeBase):
    """Base of all tables: instants carry a zone, JSON is binary, an enumeration is its text and a CHECK."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        Document: JSONB(none_as_null=True),
        str: Text,
        StrEnum: Enum(
            StrEnum, native_enum=False, length=16, values_callable=lambda kind: [item.value for item in kind]
        ),
    }


def make_engine(
    url: str, *, pool_size: int = 5, application_name: str = "duolora", trusted_for_s: float = 0.0
) -> Engine:
    """Make an engine for a `postgresql+psycopg://` URL; connections are checked before use, so a restart heals.

    Args:
        url: of the database.
        pool_size: most connections that are kept.
        application_name: by which Postgres shows them.
        trusted_for_s: a connection that was given back so shortly before is used without a check, which saves a trip.
    """
    engine = create_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=trusted_for_s <= 0,
        connect_args={
            **LIVENESS,
            "application_name": application_name,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c timezone=UTC"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS}",
            "tcp_user_timeout": DEAD_PEER_TIMEOUT_MS,
        },
    )
    if trusted_for_s > 0:
        _check_after(engine, trusted_for_s)
    return engine


def _check_after(engine: Engine, idle_s: float) -> None:
    """Check the connections of a pool that were not in use for so long."""

    @event.listens_for(engine, "checkin")
    def remember(_: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def check(connection: DBAPIConnection, record: ConnectionPoolEntry, _: PoolProxiedConnection) -> None:
        if time.monotonic() - record.info.get("idle_since", time.monotonic()) <= idle_s:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError("the connection is gone") from error  # the pool makes another one


def session_factory(engine: Engine, vault: Vault | None = None) -> sessionmaker[Session]:
    """Make the factory of sessions; objects stay readable after the commit.

    Args:
        engine: of the database.
        vault: opens and seals what is stored sealed; none for a process that has no use for that.
    """
    return sessionmaker(engine, expire_on_commit=False, info=carried(vault))


def reading(factory: sessionmaker[Session]) -> Engine:
    """Return an engine for single statements that only read, which saves a transaction's two trips.

    It shares the pool of the factory's.
    """
    engine: Engine = factory.kw["bind"]
    return engine.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def transaction(factory: sessionmaker[Session]) -> Iterator[Session]:
    """Open a session, commit once at the end, roll back on any exception."""
    with factory.begin() as session:
        yield session
