"""What is kept of an upload has a key that its row names. Adds only: uploads without one have the key of before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013_upload_keys"
down_revision = "0012_upload_links"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("key", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("uploads", "key")
