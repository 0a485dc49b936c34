"""Revisions against real, empty databases."""

import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, make_url, select, text, update
from sqlalchemy.exc import IntegrityError

import migrations
from api.accounts.models import Account
from api.db import Base, make_engine, session_factory, transaction
from api.jobs.models import Job, Stage
from api.webhooks.models import WebhookEndpoint
from tests.api.factories import make_account, make_job
from tests.support.vault import VAULT

INSERT_OLD_STAGE = text(
    "INSERT INTO stages (id, job_id, name, ordinal, depends_on, state, max_attempts)"
    " VALUES (gen_random_uuid(), :job, :name, 0, '{}', 'waiting', 3)"
)


@pytest.fixture
def empty(empty_database_url):
    engine = make_engine(empty_database_url)
    yield engine
    engine.dispose()


def test_up_is_what_the_models_say_and_down_leaves_nothing(empty, empty_database_url):
    migrations.upgrade(empty_database_url)
    with empty.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert migrations.current(connection) == migrations.head()
    migrations.downgrade(empty_database_url)
    with empty.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
        ours = text("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
        assert connection.scalars(ours).all() == []
    migrations.upgrade(empty_database_url)


def test_every_reference_is_found_by_an_index(database_url):
    """Or deleting a job reads whole tables, once for every one of its rows: 29 s for one with 2,000 events."""
    unindexed = text(
        "SELECT conname FROM pg_constraint WHERE contype = 'f' AND NOT EXISTS ("
        " SELECT 1 FROM pg_index WHERE indrelid = conrelid AND indkey[0] = conkey[1])"
    )
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert connection.scalars(unindexed).all() == []
    engine.dispose()


def test_two_deployments_at_once_migrate_once(empty, empty_database_url):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(migrations.upgrade, [empty_database_url] * 2))
    with empty.connect() as connection:
        assert migrations.current(connection) == migrations.head()


def test_the_one_shot_command_brings_an_empty_database_to_the_newest_revision(empty, empty_database_url):
    environment = os.environ | {"DATABASE_URL": empty_database_url}
    command = [sys.executable, "-m", "migrations"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert migrations.head() in done.stdout
    with empty.connect() as connection:
        assert migrations.current(connection) == migrations.head()


def test_an_empty_database_has_no_revision(empty):
    with empty.connect() as connection:
        assert migrations.current(connection) is None


@pytest.mark.parametrize(
    ("model", "change", "constraint"),
    [
        (Job, {"state": "done"}, "ck_jobs_state"),
        (Job, {"state": "succeeded"}, "ck_jobs_finished"),
        (Stage, {"state": "paused"}, "ck_stages_state"),
        (Stage, {"state": "running"}, "ck_stages_lease"),
        (Stage, {"state": "runnable", "runnable_at": None}, "ck_stages_runnable"),
    ],
)
def test_the_database_itself_refuses_states_that_make_no_sense(database_url, model, change, constraint):
    engine = make_engine(database_url)
    sessions = session_factory(engine, VAULT)
    make_job(sessions, make_account(sessions))
    with pytest.raises(IntegrityError, match=constraint), transaction(sessions) as session:
        session.execute(update(model).values(change).execution_options(synchronize_session=False))
    engine.dispose()


def test_rows_of_the_revision_before_get_what_the_new_code_reads(empty, empty_database_url):
    """Also a stage that the old code inserts while both are deployed."""
    migrations.upgrade(empty_database_url, "0002")
    account, job = uuid.uuid4(), uuid.uuid4()
    with empty.begin() as connection:
        connection.execute(
            text("INSERT INTO accounts (id, name, webhook_secret) VALUES (:account, 'old', 'whsec_x')"),
            {"account": account},
        )
        connection.execute(
            text(
                "INSERT INTO jobs (id, account_id, kind, state, params, params_version, request, priority, self_url,"
                " webhook_url) VALUES (:job, :account, 'personalize', 'queued', '{}', 1, '{}', 7, 'http://x', 'http://h')"
            ),
            {"job": job, "account": account},
        )
        connection.execute(
            text(
                "INSERT INTO job_images (job_id, side, ordinal, key, sha256, bytes, width, height, content_type)"
                " VALUES (:job, 'content', 0, 'k', 's', 40, 1, 1, 'image/png')"
            ),
            {"job": job},
        )
        connection.execute(INSERT_OLD_STAGE, {"job": job, "name": "before"})
    migrations.upgrade(empty_database_url)
    with empty.begin() as connection:
        connection.execute(INSERT_OLD_STAGE, {"job": job, "name": "after"})
        created_at = connection.scalar(select(Job.created_at).where(Job.id == job))
        rows = connection.execute(select(Stage.name, Stage.account_id, Stage.priority, Stage.queued_at)).all()
        assert {tuple(row) for row in rows} == {(name, account, 7, created_at) for name in ("before", "after")}
        assert connection.scalar(select(Account.stored_bytes)) == 40
        assert connection.execute(select(WebhookEndpoint.url, WebhookEndpoint.job_id)).one() == ("http://h", job)


def test_loras_of_the_mock_engine_are_known_by_their_job_or_their_tag(empty, empty_database_url):
    migrations.upgrade(empty_database_url, "0009")
    account, job = uuid.uuid4(), uuid.uuid4()
    with empty.begin() as connection:
        connection.execute(
            text("INSERT INTO accounts (id, name, webhook_secret) VALUES (:account, 'old', 'whsec_x')"),
            {"account": account},
        )
        connection.execute(
            text(
                "INSERT INTO jobs (id, account_id, kind, state, params, params_version, request, priority, self_url,"
                " mock_outcome)"
                " VALUES (:job, :account, 'personalize', 'queued', '{}', 1, '{}', 0, 'http://x', 'succeed')"
            ),
            {"job": job, "account": account},
        )
        connection.execute(
            text(
                "INSERT INTO loras (id, account_id, name, tags, role, source, job_id, files)"
                " VALUES (gen_random_uuid(), :account, 'untagged', '{}', 'style', 'job', :job, '[]'),"
                " (gen_random_uuid(), :account, 'of a job that is gone', '{mock}', 'style', 'job', :gone, '[]'),"
                " (gen_random_uuid(), :account, 'real', '{}', 'style', 'job', :gone, '[]'),"
                " (gen_random_uuid(), :account, 'sent in', '{mock}', 'style', 'upload', NULL, '[]')"
            ),
            {"account": account, "job": job, "gone": uuid.uuid4()},
        )
    migrations.upgrade(empty_database_url)
    with empty.begin() as connection:
        marked = connection.scalars(text("SELECT name FROM loras WHERE mock")).all()
        assert set(marked) == {"untagged", "of a job that is gone"}


def test_an_event_wakes_whoever_listens_for_its_job(database_url):
    engine = make_engine(database_url)
    sessions = session_factory(engine, VAULT)
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN duolora_events")
        job_id = make_job(sessions, make_account(sessions))
        [notice] = listener.notifies(timeout=10, stop_after=1)
    assert notice.payload == str(job_id)
    engine.dispose()
