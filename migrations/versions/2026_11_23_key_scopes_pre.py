"""Keys have scopes and are rotated; jobs may be of the mock engine. Adds only: keys there are keep all scopes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009_key_scopes"
down_revision = "0008_job_loras"
branch_labels = None
depends_on = None


def upgrade() -> None:
    scopes = postgresql.ARRAY(sa.Text())
    op.add_column("api_keys", sa.Column("scopes", scopes, server_default=sa.text("'{admin}'::text[]"), nullable=False))
    op.add_column("api_keys", sa.Column("rotated_to", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("mock_outcome", sa.String(16), nullable=True))
    op.create_check_constraint(op.f("ck_jobs_mock_outcome"), "jobs", "mock_outcome IN ('succeed', 'fail', 'slow')")


def downgrade() -> None:
    op.drop_column("jobs", "mock_outcome")
    for name in ("rotated_to", "scopes"):
        op.drop_column("api_keys", name)
