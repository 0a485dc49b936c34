"""An account has a library of LoRAs. Adds only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006_loras"
down_revision = "0005_shared_passes"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "loras",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("trigger", sa.Text(), nullable=True),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("kept", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("state", sa.String(16), server_default="ready", nullable=False),
        sa.Column("settle_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("files", postgresql.JSONB(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('content', 'style', 'merged', 'other')", name=op.f("ck_loras_role")),
        sa.CheckConstraint("source IN ('job', 'upload')", name=op.f("ck_loras_source")),
        sa.CheckConstraint("state IN ('pending', 'ready', 'deleting')", name=op.f("ck_loras_state")),
        sa.CheckConstraint("state = 'ready' OR settle_at IS NOT NULL", name=op.f("ck_loras_settled")),
        sa.CheckConstraint("stored_bytes >= 0", name=op.f("ck_loras_size")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_loras_account_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_loras")),
    )
    newest = ["account_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")]
    op.create_index("ix_loras_newest", "loras", newest)
    op.create_index("ix_loras_job", "loras", ["job_id"], postgresql_where=sa.text("job_id IS NOT NULL"))
    op.create_index("ix_loras_settle", "loras", ["settle_at"], postgresql_where=sa.text("settle_at IS NOT NULL"))


def downgrade() -> None:
    op.drop_table("loras")
