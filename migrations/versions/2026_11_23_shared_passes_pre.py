"""Trainings of several jobs may share passes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_shared_passes"
down_revision = "0004_deleted_jobs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("stages", sa.Column("likeness", sa.Text(), nullable=True))
    op.add_column("stages", sa.Column("alone", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(
        "ix_stages_alike",
        "stages",
        ["account_id", "likeness", sa.literal_column("priority DESC"), "queued_at", "job_id", "ordinal"],
        postgresql_where=sa.text("state = 'runnable'"),
    )
    op.add_column("stage_attempts", sa.Column("jobs", sa.Integer(), server_default="1", nullable=False))


def downgrade() -> None:
    op.drop_column("stage_attempts", "jobs")
    op.drop_index("ix_stages_alike", table_name="stages")
    for name in ("alone", "likeness"):
        op.drop_column("stages", name)
