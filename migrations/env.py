"""Alembic's entry point. Always given an open connection by `migrations.upgrade`, or makes one from DATABASE_URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import context

import api.accounts.models
import api.jobs.models
import api.loras.models
import api.uploads.models
import api.webhooks.models  # noqa: F401  (every model must be known to the metadata)
from api.db import Base, make_engine
from api.settings import DatabaseSettings

if TYPE_CHECKING:
    from sqlalchemy import Connection


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        transaction_per_migration=True,  # locks of one are let go before the next, and some need none at all
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = make_engine(DatabaseSettings().url.get_secret_value())
    with engine.connect() as own:
        run(own)
        own.commit()
    engine.dispose()
