"""What a revision may do while the version before still runs, judged by the statements that it really executes."""

import re

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

import migrations
from tests.migrations.revisions import in_order, stem, upgrade_to_next

TAKES_AWAY = re.compile(
    r"\bDROP (TABLE|COLUMN|TYPE|FUNCTION|TRIGGER|VIEW)\b|\bRENAME\b|\bTRUNCATE\b"
    r"|\bALTER COLUMN \w+ (SET DATA )?TYPE\b|\bALTER COLUMN \w+ DROP DEFAULT\b"
)
DROPS_CONSTRAINT = re.compile(r"\bDROP CONSTRAINT (?:IF EXISTS )?(\w+)")
ADDS_CONSTRAINT = re.compile(r"\bADD CONSTRAINT (\w+)")
NOT_NULL = re.compile(r"\bADD COLUMN \w+ (?!.*\bDEFAULT\b).*\bNOT NULL\b|\bSET NOT NULL\b", re.DOTALL)
CREATES_TABLE = re.compile(r"\bCREATE TABLE (\w+)")
BUILDS_INDEX = re.compile(r"\bCREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)\w+ ON (\w+)")
CHECKS_ALL_ROWS = re.compile(
    r"\bALTER TABLE (\w+) ADD CONSTRAINT \w+ (?:CHECK|FOREIGN KEY|UNIQUE)(?!.*\bNOT VALID\b)", re.DOTALL
)

BEFORE_THE_RULES = {
    "0003",
    "0004_deleted_jobs",
    "0005_shared_passes",
    "0009_key_scopes",
    "0012_upload_links",
    "0014_lora_replays",
}
"""Built indexes and checked rows under a lock, or filled a column before it became NOT NULL. No release had them."""


@pytest.fixture
def statements():
    """What any engine executes; emptied by the test between two revisions."""
    heard = []

    def hear(_connection, _cursor, statement, *_):
        heard.append(" ".join(statement.split()))

    event.listen(Engine, "before_cursor_execute", hear)
    yield heard
    event.remove(Engine, "before_cursor_execute", hear)


def faults(statements):
    """What would break the code before, or stop it for as long as a table is large."""
    found = []
    fresh = {name for line in statements for name in CREATES_TABLE.findall(line)}
    again = {name for line in statements for name in ADDS_CONSTRAINT.findall(line)}
    for line in statements:
        if TAKES_AWAY.search(line) or any(name not in again for name in DROPS_CONSTRAINT.findall(line)):
            found.append(f"takes away: {line}")
        if NOT_NULL.search(line) and not CREATES_TABLE.search(line):
            found.append(f"refuses the rows of the code before: {line}")
        found += [f"blocks writers: {line}" for table in BUILDS_INDEX.findall(line) if table not in fresh]
        found += [
            f"checks all rows under a lock: {line}" for table in CHECKS_ALL_ROWS.findall(line) if table not in fresh
        ]
    return found


def test_every_revision_says_when_it_is_applied_and_those_before_the_code_only_add(empty_database_url, statements):
    for script in in_order():
        assert stem(script).endswith(("_pre", "_post")), script.path
        statements.clear()
        migrations.upgrade(empty_database_url, script.revision)
        assert statements
        if stem(script).endswith("_post"):
            continue
        found = faults(statements)
        if script.revision in BEFORE_THE_RULES:
            assert found
            assert not [fault for fault in found if fault.startswith("takes away")], script.revision
        else:
            assert not found, script.revision


def test_a_revision_by_the_rules_passes(database_url, statements, tmp_path):
    upgrade_to_next(database_url, tmp_path / "next", ["jobs", "stages"])
    assert any("CREATE INDEX CONCURRENTLY" in line for line in statements)
    assert faults(statements) == []


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE jobs DROP COLUMN name",
        "DROP TABLE job_loras",
        "ALTER TABLE jobs RENAME COLUMN name TO title",
        "ALTER TABLE jobs ADD COLUMN size INTEGER NOT NULL",
        "ALTER TABLE jobs ALTER COLUMN name SET NOT NULL",
        "ALTER TABLE jobs ALTER COLUMN priority TYPE BIGINT",
        "ALTER TABLE jobs DROP CONSTRAINT ck_jobs_state",
        "CREATE INDEX ix_jobs_name ON jobs (name)",
        "CREATE UNIQUE INDEX ix_jobs_name ON jobs (name)",
        "ALTER TABLE jobs ADD CONSTRAINT ck_jobs_size CHECK (size > 0)",
        "ALTER TABLE jobs ADD CONSTRAINT fk_jobs_x FOREIGN KEY(x) REFERENCES accounts (id) ON DELETE CASCADE",
    ],
)
def test_statements_against_the_rules_are_found(statement):
    assert len(faults([statement])) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE jobs ADD COLUMN size INTEGER",
        "ALTER TABLE jobs ADD COLUMN size INTEGER DEFAULT '0' NOT NULL",
        "CREATE INDEX CONCURRENTLY ix_jobs_name ON jobs (name)",
        "ALTER TABLE jobs ADD CONSTRAINT ck_jobs_size CHECK (size > 0) NOT VALID",
    ],
)
def test_statements_by_the_rules_pass(statement):
    assert faults([statement]) == []
