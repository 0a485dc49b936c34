"""A request for a LoRA may be sent again, as one for a job. Adds only: of rows of before, a job came."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014_lora_replays"
down_revision = "0013_upload_keys"
branch_labels = None
depends_on = None

_KEY = "fk_idempotency_keys_lora_id_loras"
_INDEX = "ix_idempotency_keys_lora_id"


def upgrade() -> None:
    op.add_column("idempotency_keys", sa.Column("lora_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(_KEY, "idempotency_keys", "loras", ["lora_id"], ["id"], ondelete="CASCADE")
    op.create_index(_INDEX, "idempotency_keys", ["lora_id"])


def downgrade() -> None:
    op.drop_index(_INDEX, "idempotency_keys")
    op.drop_constraint(_KEY, "idempotency_keys", type_="foreignkey")
    op.drop_column("idempotency_keys", "lora_id")
