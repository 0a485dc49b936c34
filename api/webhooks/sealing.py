"""Secrets that are stored plainly, or sealed with a key that was replaced, are sealed with the newest."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from api.accounts.models import Account
from api.vault import CannotOpen, vault_of
from api.webhooks.models import WebhookEndpoint

if TYPE_CHECKING:
    from sqlalchemy.orm import InstrumentedAttribute, Session

logger = logging.getLogger(__name__)

_SECRETS: tuple[tuple[InstrumentedAttribute[str] | InstrumentedAttribute[str | None], type], ...] = (
    (Account.webhook_secret, Account),
    (WebhookEndpoint.secret, WebhookEndpoint),
    (WebhookEndpoint.previous_secret, WebhookEndpoint),
)


def seal_again(session: Session, *, limit: int) -> int:
    """Seal secrets with the newest key that are not yet; returns how many were.

    One that cannot be opened stays as it is, and is told of in the log. A secret that is changed at the same moment is
    left alone: its new value is sealed already.

    Args:
        session: an open transaction of a factory with a vault.
        limit: most secrets of a kind.
    """
    return sum(_seal_column(session, column, table, limit) for column, table in _SECRETS)


def _seal_column(
    session: Session,
    column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None],
    table: type[Account | WebhookEndpoint],
    limit: int,
) -> int:
    vault, done = vault_of(session), 0
    wanted = select(table.id, column).where(column.is_not(None), ~column.startswith(vault.mark)).limit(limit)
    for row_id, stored in session.execute(wanted).all():
        if stored is None:
            continue
        try:
            sealed = vault.seal(vault.open(stored))
        except CannotOpen as error:
            logger.warning("of %s %s: %s", table.__tablename__, row_id, error)
            continue
        session.execute(
            update(table)
            .where(table.id == row_id, column == stored)
            .values({column: sealed})
            .execution_options(synchronize_session=False)
        )
        done += 1
    return done
