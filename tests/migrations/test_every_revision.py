"""Each revision down and up again, with rows in the tables."""

import json

import pytest
from sqlalchemy import MetaData, select

import migrations
from api.db import make_engine, session_factory, transaction
from api.webhooks.models import WebhookEndpoint
from tests.api.factories import claim, finish, make_account, make_job, make_lora
from tests.migrations.revisions import in_order
from tests.support.vault import VAULT

ENTERED = ("accounts", "jobs", "job_images", "stages", "stage_attempts", "artifacts", "events", "outbox", "loras")
"""Tables that must have rows, or the test would show nothing."""


@pytest.fixture
def engine(database_url):
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def fill(engine):
    """Jobs in several states, with all that belongs to them."""
    sessions = session_factory(engine, VAULT)
    account_id = make_account(sessions)
    for number in range(3):
        make_job(sessions, account_id, name=f"job {number}", request_id=f"request {number}")
    finish(sessions, claim(sessions))
    claim(sessions)
    make_lora(sessions, account_id, tags=["a", "b"], mock=True)
    with transaction(sessions) as session:
        session.add(WebhookEndpoint(account_id=account_id, url="https://receiver.example/hook"))


def content(engine):
    """All rows of all tables: columns by name, values as text."""
    metadata = MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
        return {
            table.name: [
                {name: json.dumps(value, default=str, sort_keys=True) for name, value in row.items()}
                for row in connection.execute(select(table)).mappings()
            ]
            for table in metadata.sorted_tables
            if table.name != "alembic_version"
        }


def narrowed(rows, columns):
    return sorted(json.dumps({name: row[name] for name in sorted(columns)}) for row in rows)


def columns(rows):
    return set(rows[0]) if rows else set()


def test_each_step_down_and_up_again_loses_only_what_it_had_added(engine, database_url):
    fill(engine)
    before = content(engine)
    assert all(before[table] for table in ENTERED), {table: len(rows) for table, rows in before.items()}
    for script in reversed(in_order()):
        down_to = script.down_revision or "base"
        migrations.downgrade(database_url, down_to)
        below = content(engine)
        for table, rows in below.items():
            shared = columns(rows) & columns(before[table])
            assert narrowed(rows, shared) == narrowed(before[table], shared), (script.revision, table)
        migrations.upgrade(database_url, script.revision)
        above = content(engine)
        assert set(above) == set(before), script.revision
        for table, rows in above.items():
            shared = columns(rows) & columns(below.get(table, []))
            assert narrowed(rows, shared) == narrowed(below.get(table, []), shared), (script.revision, table)
        migrations.downgrade(database_url, down_to)
        before = content(engine)
    assert before == {}
    migrations.upgrade(database_url)
