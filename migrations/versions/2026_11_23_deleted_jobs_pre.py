"""Jobs are deleted on request, and leave a receipt. Adds only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004_deleted_jobs"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("retention_days", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("deletion_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_jobs_expires", "jobs", ["expires_at"], postgresql_where=sa.text("expires_at IS NOT NULL"))
    op.create_index(
        "ix_jobs_deletion",
        "jobs",
        ["deletion_requested_at"],
        postgresql_where=sa.text("deletion_requested_at IS NOT NULL"),
    )
    op.create_table(
        "deleted_jobs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("erased", postgresql.JSONB(none_as_null=True), nullable=False),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_deleted_jobs_account_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_deleted_jobs")),
    )
    op.create_index(op.f("ix_deleted_jobs_account_id"), "deleted_jobs", ["account_id"])
    op.create_index(
        "ix_deleted_jobs_unswept", "deleted_jobs", ["deleted_at"], postgresql_where=sa.text("swept_at IS NULL")
    )


def downgrade() -> None:
    op.drop_table("deleted_jobs")
    for name in ("deletion_requested_at", "expires_at", "retention_days"):
        op.drop_column("jobs", name)  # with the indexes that name it
