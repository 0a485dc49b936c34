"""${message}

Old code still runs while a `pre` is applied, so it adds only: columns that may be null or have a default, constraints as
NOT VALID and validated in a revision of their own, indexes on tables that there are by `migrations.indexes`. What takes
away is a `post` of a later version. One revision changes one table in use: it holds no lock while it waits for another.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
