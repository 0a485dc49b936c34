"""Revisions one by one, and one that the next version might bring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.script import ScriptDirectory

import migrations

if TYPE_CHECKING:
    from alembic.script import Script

NEXT = "9999_next"
NEXT_INDEX = f'''
"""An index on a table in use."""

from alembic import op

from migrations.indexes import build_index

revision = "{NEXT}_index"
down_revision = "{NEXT}"


def upgrade():
    build_index("ix_jobs_next", "jobs", ["next_note"])


def downgrade():
    op.drop_index("ix_jobs_next", table_name="jobs")
'''
NEXT_COLUMNS = '''
"""Columns in one table, with and without a default."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade():
    op.add_column("{table}", sa.Column("next_note", sa.Text(), nullable=True))
    op.add_column("{table}", sa.Column("next_count", sa.Integer(), server_default="0", nullable=False))


def downgrade():
    op.drop_column("{table}", "next_count")
    op.drop_column("{table}", "next_note")
'''
NEXT_TABLE = '''
"""A table that refers to jobs."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade():
    op.create_table(
        "next_things",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("job_id", sa.Uuid(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    )


def downgrade():
    op.drop_table("next_things")
'''


def in_order() -> list[Script]:
    """All revisions, the first one first."""
    return list(ScriptDirectory.from_config(migrations._config()).walk_revisions())[::-1]


def stem(script: Script) -> str:
    return Path(script.path).stem


def upgrade_to_next(url: str, folder: Path, tables: list[str]) -> None:
    """Bring a database to where the next version brings it before its code comes."""
    folder.mkdir(exist_ok=True)
    before = migrations.head()
    for table in tables:
        revision = f"{NEXT}_{table}"
        columns = NEXT_COLUMNS.format(revision=revision, before=before, table=table)
        (folder / f"next_{table}_pre.py").write_text(columns)
        before = revision
    (folder / "next_things_pre.py").write_text(NEXT_TABLE.format(revision=NEXT, before=before))
    (folder / "next_index_pre.py").write_text(NEXT_INDEX)

    config = migrations._config()
    own = Path(migrations.__file__).with_name("versions")
    config.set_main_option("version_locations", f"{own}:{folder}")
    migrations._run(url, lambda config: command.upgrade(config, "head"), config)
