"""Two versions of the code on one database, as in a deployment that stops nothing.

What this shows: the processes of one version do a job's whole way on the schema that the other brings, and take up each
other's jobs. What it does not: that a change of what a column means is understood by the version before; that is for
whoever makes such a change.
"""

import threading

import httpx
import pytest
from sqlalchemy import inspect

import migrations
from api.accounts.service import issue_key
from api.db import make_engine, session_factory
from deploy.local.demo import shipped_samples
from tests.migrations.revisions import NEXT, upgrade_to_next
from tests.migrations.version_before import NoHistory, version_before
from tests.support.services import running_services
from tests.support.vault import VAULT

WAIT_S = 60


@pytest.fixture
def engine(database_url):
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def key(engine):
    return issue_key(session_factory(engine, VAULT), account="mine").text


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    try:
        return version_before(tmp_path_factory.mktemp("before"))
    except NoHistory as reason:
        pytest.skip(str(reason))


@pytest.fixture
def environment(service_environment):
    return service_environment | {"WORKER_ENGINE": "mock"}


def submit(client):
    samples = shipped_samples()
    return client.personalize(
        content=samples.content[:1], style=samples.style[:1], subject_class="dog", engine="mock"
    ).id


def done(client, job_id):
    job = client.wait(job_id, timeout_s=WAIT_S)
    assert job.state == "succeeded", job
    return job


def read_everything(client, job_id):
    """What a caller reads of a job: rows of nearly all tables."""
    job = client.job(job_id)
    assert client.jobs() is not None
    assert client.loras() is not None
    return {artifact.name: httpx.get(artifact.url).content for artifact in job.result.artifacts}


def test_the_next_version_migrates_while_this_one_serves(engine, database_url, environment, key, tmp_path):
    ended = []
    deploying = threading.Event()
    with running_services(environment, key, tmp_path / "now") as services:
        client = services.client
        done(client, submit(client))
        tables = [name for name in inspect(engine).get_table_names() if name != "alembic_version"]

        def migrate():
            try:
                upgrade_to_next(database_url, tmp_path / "next", tables)
            finally:
                deploying.set()

        migrating = threading.Thread(target=migrate)
        migrating.start()
        while not deploying.is_set():
            ended.append(done(client, submit(client)))
        migrating.join()
        job_id = submit(client)
        ended.append(done(client, job_id))
        assert read_everything(client, job_id)
        assert client.delete(job_id).state == "deleted"
        with engine.connect() as connection:
            assert migrations.current(connection) == f"{NEXT}_index"
    assert len(ended) >= 2


def test_the_version_before_works_on_the_schema_of_this_one_and_each_takes_up_the_others_jobs(
    before, environment, key, tmp_path
):
    with running_services(environment, key, tmp_path / "before", code=before) as services:
        old = services.client
        old_job = submit(old)
        done(old, old_job)
        with running_services(environment, key, tmp_path / "now") as services_of_now:
            new = services_of_now.client
            files = read_everything(new, old_job)
            for job_id in [submit(client) for client in (old, new, old, new)]:
                done(new, job_id)
                done(old, job_id)
            last = submit(new)
        assert done(old, last)  # back again
        assert read_everything(old, last)
        assert read_everything(old, old_job) == files
