"""What vendors say of a trace goes with its context. Adds only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015_tracestate"
down_revision = "0014_lora_replays"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("jobs", "webhook_deliveries"):
        op.add_column(table, sa.Column("tracestate", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in ("jobs", "webhook_deliveries"):
        op.drop_column(table, "tracestate")
