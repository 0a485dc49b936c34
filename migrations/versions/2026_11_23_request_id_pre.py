"""Jobs and deliveries remember the id of the request that made them. Adds only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_request_id"
down_revision = "0009_key_scopes"
branch_labels = None
depends_on = None

TABLES = ("jobs", "webhook_deliveries")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("request_id", sa.Text(), nullable=True))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "request_id")
