"""Every query about LoRAs, shared by the API, the worker and the dispatcher. Never commits; knows no HTTP.

What a job puts in and takes out is `making.py`; what is left over in the store is `disposal.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import DateTime, func, select, tuple_

from api.loras.making import add_made, withdraw_made
from api.loras.models import Lora, LoraState

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

__all__ = ["DueLora", "add_made", "due", "find", "list_loras", "lock", "lock_any", "moment", "withdraw_made"]


@dataclass(frozen=True, slots=True)
class DueLora:
    """A LoRA whose place in the store is to be looked at."""

    lora_id: uuid.UUID
    account_id: uuid.UUID


def find(session: Session, *, account_id: uuid.UUID, lora_id: uuid.UUID) -> Lora | None:
    """Return an account's LoRA, None if it has none of that id. Its files may go as soon as the transaction ends."""
    mine = (Lora.id == lora_id, Lora.account_id == account_id, Lora.state == LoraState.READY)
    return session.scalars(select(Lora).where(*mine)).first()


def lock(session: Session, *, account_id: uuid.UUID, lora_id: uuid.UUID) -> Lora | None:
    """As `find`, and nobody else decides about it until the transaction ends."""
    lora = lock_any(session, lora_id)
    return lora if lora is not None and lora.account_id == account_id and lora.state is LoraState.READY else None


def lock_any(session: Session, lora_id: uuid.UUID) -> Lora | None:
    """Return a LoRA in any state and of any account, locked."""
    return session.get(Lora, lora_id, with_for_update=True, populate_existing=True)


def moment(session: Session) -> datetime:
    """Return the database's time now, after whatever lock the transaction has waited for."""
    return session.execute(select(func.clock_timestamp(type_=DateTime(timezone=True)))).scalar_one()


def list_loras(
    session: Session,
    *,
    account_id: uuid.UUID,
    before: tuple[datetime, uuid.UUID] | None,
    limit: int,
    roles: Collection[str] = (),
    tags: Collection[str] = (),
    job_id: uuid.UUID | None = None,
    base_model: str | None = None,
) -> Sequence[Lora]:
    """Return LoRAs of an account, newest first.

    Args:
        session: an open transaction.
        account_id: whose.
        before: instant and id of the last one of the page before.
        limit: most LoRAs.
        roles: only those in one of these, if there are any.
        tags: only those that have all of these.
        job_id: only those that this job made.
        base_model: only those for this base.
    """
    query = select(Lora).where(Lora.account_id == account_id, Lora.state == LoraState.READY)
    if before is not None:
        query = query.where(tuple_(Lora.created_at, Lora.id) < before)
    if roles:
        query = query.where(Lora.role.in_(roles))
    if tags:
        query = query.where(Lora.tags.contains(list(tags)))
    if job_id is not None:
        query = query.where(Lora.job_id == job_id)
    if base_model is not None:
        query = query.where(Lora.base_model == base_model)
    return session.scalars(query.order_by(Lora.created_at.desc(), Lora.id.desc()).limit(limit)).all()


def due(session: Session, *, limit: int) -> list[DueLora]:
    """Return LoRAs whose place in the store is to be looked at now, those that wait longest first."""
    rows = session.execute(
        select(Lora.id, Lora.account_id).where(Lora.settle_at <= func.now()).order_by(Lora.settle_at).limit(limit)
    )
    return [DueLora(*row) for row in rows]
