"""Every query about LoRAs, shared by the API, the worker and the dispatcher. Never commits; knows no HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from api.loras.models import Lora, LoraState

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session


def find(session: Session, *, account_id: uuid.UUID, lora_id: uuid.UUID) -> Lora | None:
    """Return an account's LoRA, None if it has none of that id. Its files may go as soon as the transaction ends."""
    mine = (Lora.id == lora_id, Lora.account_id == account_id, Lora.state == LoraState.READY)
    return session.scalars(select(Lora).where(*mine)).first()
