"""Revisions against real, empty databases."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text, update
from sqlalchemy.exc import IntegrityError

import api.accounts.models
import api.jobs.models
import api.webhooks.models  # noqa: F401
import migrations
from api.db import Base, make_engine, session_factory, transaction
from api.jobs.models import Job, Stage
from tests.api.factories import make_account, make_job


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
        functions = connection.execute(text("SELECT count(*) FROM pg_proc WHERE proname = 'notify_outbox'"))
        assert functions.scalar_one() == 0
    migrations.upgrade(empty_database_url)


def test_two_deployments_at_once_migrate_once(empty, empty_database_url):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(migrations.upgrade, [empty_database_url] * 2))
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
    sessions = session_factory(engine)
    make_job(sessions, make_account(sessions))
    with pytest.raises(IntegrityError, match=constraint), transaction(sessions) as session:
        session.execute(update(model).values(change).execution_options(synchronize_session=False))
    engine.dispose()
