"""Jobs work with LoRAs of the library, and may have a name. Adds only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_job_loras"
down_revision = "0007_uploads"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("name", sa.Text(), nullable=True))
    op.create_table(
        "job_loras",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("lora_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("strength", sa.Float(), nullable=False),
        sa.CheckConstraint("role IN ('content', 'style', 'drawing')", name=op.f("ck_job_loras_role")),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_job_loras_size")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_loras_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "role", "ordinal", name=op.f("pk_job_loras")),
    )


def downgrade() -> None:
    op.drop_table("job_loras")
    op.drop_column("jobs", "name")
