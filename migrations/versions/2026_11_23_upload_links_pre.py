"""What links may still bring counts as stored. Adds only: of uploads that are ready already it is not known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_upload_links"
down_revision = "0011_mock_loras"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("link_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_check_constraint(op.f("ck_uploads_link_bytes"), "uploads", "link_bytes >= 0")
    op.create_index("ix_uploads_links", "uploads", ["link_expires_at"], postgresql_where=sa.text("link_bytes > 0"))


def downgrade() -> None:
    op.drop_column("uploads", "link_bytes")  # with the constraint and the index that name it
