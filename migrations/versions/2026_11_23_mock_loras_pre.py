"""LoRAs remember that the mock engine made them, whatever becomes of their tags. Adds only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_mock_loras"
down_revision = "0010_request_id"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("loras", sa.Column("mock", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    # The tag tells of those whose job is gone; those that have lost both cannot be told.
    op.execute(
        "UPDATE loras SET mock = true WHERE source = 'job' AND ('mock' = ANY (tags)"
        " OR EXISTS (SELECT FROM jobs WHERE jobs.id = loras.job_id AND jobs.mock_outcome IS NOT NULL))"
    )


def downgrade() -> None:
    op.drop_column("loras", "mock")
