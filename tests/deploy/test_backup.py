"""Backup and restore by the commands and by their parts: what comes back, what goes on, what is refused."""

import json
import os
import re
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import select, text

import migrations
from api.accounts.service import issue_key
from api.db import make_engine, session_factory, transaction
from api.jobs.models import Artifact, Event, Job, Stage, StageAttempt
from api.object_keys import artifact_key
from api.vault import Vault
from api.webhooks.models import WebhookDelivery, WebhookEndpoint
from deploy.backup import acts, objects
from deploy.backup.acts import ATTEMPTS_SKIPPED, back_up, restore
from deploy.backup.folder import BackupError, BackupFolder
from deploy.backup.rows import GAP
from deploy.local.demo import shipped_samples
from tests.api.factories import claim, finish, make_account, make_job
from tests.chaos.installation import QUICK
from tests.chaos.recipes import APART
from tests.support.services import running_services
from tests.support.vault import SECRET_KEYS, VAULT
from tests.support.webhook_receiver import webhook_receiver

pytestmark = pytest.mark.timeout(300)
DATA = b"the bytes of a result"


@pytest.fixture
def folder(tmp_path):
    return BackupFolder(tmp_path / "backup")


class Installed:
    """A database and a store, wiped and looked into."""

    def __init__(self, server, url, store):
        self.server, self.url, self.store = server, url, store

    def sessions(self):
        self.engine = make_engine(self.url)
        return session_factory(self.engine, VAULT)

    def close(self):
        self.engine.dispose()

    def wipe(self):
        name = urlsplit(self.url).path[1:]
        self.server.drop_database(name)
        self.server.copy_database(name, "template0")
        self.store.delete(self.store.keys())
        assert self.store.keys() == []

    def scalars(self, statement):
        sessions = self.sessions()
        try:
            with sessions() as session:
                return session.scalars(statement).all()
        finally:
            self.close()

    def content(self):
        """Rows of all tables by name, in no order, but for those that tell who is alive."""
        engine = make_engine(self.url)
        tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        with engine.connect() as connection:
            names = set(connection.scalars(text(tables))) - {"workers"}
            found = {
                name: sorted(map(str, connection.execute(text(f"SELECT to_jsonb(t)::text FROM {name} t"))))  # noqa: S608
                for name in names
            }
        engine.dispose()
        return found


@pytest.fixture
def installed(postgres_server, database_url, store):
    return Installed(postgres_server, database_url, store)


@pytest.fixture
def job_id(installed):
    """A job with one stage done, whose file is in the store, and one under way."""
    sessions = installed.sessions()
    account_id = make_account(sessions)
    job = make_job(sessions, account_id, webhook_url="http://receiver.example/hook")
    finish(sessions, claim(sessions))
    claim(sessions)
    with transaction(sessions) as session:
        artifact = session.scalars(select(Artifact)).one()
        made, artifact.key = artifact.key, artifact_key(account_id, job, "content_lora", 1, "content_lora.bin")
        replaced = text("UPDATE loras SET files = replace(files::text, :made, :key)::jsonb")
        session.execute(replaced, {"made": made, "key": artifact.key})
        installed.store.put_bytes(artifact.key, DATA, "application/octet-stream")
        session.execute(
            text("UPDATE job_images SET key = 'accounts/' || :a || '/images/' || side"), {"a": str(account_id)}
        )
        session.add(WebhookEndpoint(account_id=account_id, url="https://receiver.example/all"))
        session.add(
            WebhookDelivery(
                account_id=account_id,
                job_id=job,
                type="job.started",
                url="https://receiver.example/all",
                body="{}",
                state="pending",
            )
        )
    for side in ("content", "style"):
        installed.store.put_bytes(f"accounts/{account_id}/images/{side}", b"picture", "image/png")
    installed.close()
    return job


def test_rows_and_objects_come_back_as_they_were(installed, job_id, folder):
    before, keys = installed.content(), installed.store.keys()
    taken = back_up(installed.url, installed.store, folder)
    assert (taken.lost, taken.manifest.objects) == ((), 3)
    installed.wipe()
    restore(installed.url, installed.store, folder)
    after = installed.content()
    settled = {"stages", "stage_attempts", "events", "outbox", "jobs", "webhook_deliveries", "alembic_version"}
    assert {table: rows for table, rows in after.items() if table not in settled} == {
        table: rows for table, rows in before.items() if table not in settled
    }
    assert set(before["events"]) <= set(after["events"])
    assert set(before["webhook_deliveries"]) <= set(after["webhook_deliveries"])
    assert installed.store.keys() == keys
    [artifact] = installed.scalars(select(Artifact))
    assert installed.store.get_bytes(artifact.key) == DATA
    assert installed.store.head(artifact.key).content_type == "application/octet-stream"


def test_what_ran_is_given_back_under_numbers_that_nobody_has_used(installed, job_id, folder):
    [token] = installed.scalars(select(Stage.fencing_token).where(Stage.state == "running"))
    newest = max(installed.scalars(select(Event.id)))
    back_up(installed.url, installed.store, folder)
    installed.wipe()
    restore(installed.url, installed.store, folder)
    stages = {stage.name: stage for stage in installed.scalars(select(Stage))}
    assert {name: stage.state for name, stage in stages.items()} == {
        "content_lora": "succeeded",
        "style_lora": "runnable",
        "merge": "waiting",
        "package": "waiting",
    }
    assert stages["style_lora"].attempt == 1 + ATTEMPTS_SKIPPED
    assert stages["content_lora"].attempt == 1
    assert installed.scalars(select(StageAttempt.outcome).where(StageAttempt.fencing_token == token)) == ["released"]
    sessions = installed.sessions()
    claim(sessions)
    installed.close()
    assert max(installed.scalars(select(Event.id))) > newest + GAP


def test_a_copy_that_is_to_tell_nobody_keeps_what_it_would_have_said(installed, job_id, folder):
    back_up(installed.url, installed.store, folder)
    installed.wipe()
    restore(installed.url, installed.store, folder, hold_webhooks=True)
    assert set(installed.scalars(select(WebhookEndpoint.state))) == {"disabled"}
    assert set(installed.scalars(select(WebhookDelivery.state))) == {"exhausted"}


@pytest.mark.parametrize("ended", [True, False])  # at the instant of the rows
def test_a_job_that_its_owner_deletes_meanwhile_does_not_come_back_to_stay(installed, folder, monkeypatch, ended):
    sessions = installed.sessions()
    account_id = make_account(sessions)
    job = make_job(sessions, account_id)
    if not ended:
        claim(sessions)
    with transaction(sessions) as session:
        if ended:
            session.execute(text("UPDATE jobs SET state = 'failed', finished_at = now()"))
            session.execute(text("UPDATE stages SET state = 'failed'"))
        prefix = f"accounts/{account_id}/jobs/{job}/inputs/"
        session.execute(text("UPDATE job_images SET key = :prefix || side"), {"prefix": prefix})
    installed.close()
    copy_out = objects.copy_out

    def after_deletion(store, folder):
        engine = make_engine(installed.url)
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM jobs"))
        engine.dispose()
        return copy_out(store, folder)

    monkeypatch.setattr(acts.objects, "copy_out", after_deletion)
    taken = back_up(installed.url, installed.store, folder)
    assert (taken.lost, taken.manifest.deleted_meanwhile) == ((), (str(job),))
    installed.wipe()
    restore(installed.url, installed.store, folder)
    [come_back] = installed.scalars(select(Job))
    assert come_back.deletion_requested_at is not None
    assert come_back.state == ("failed" if ended else "canceled")


def test_files_that_the_store_has_lost_are_named(installed, job_id, folder):
    [key] = [key for key in installed.store.keys("accounts/") if key.endswith(".bin")]
    installed.store.delete([key])
    assert back_up(installed.url, installed.store, folder).lost == (key,)
    assert folder.read_manifest().objects == 2


@pytest.fixture
def taken(installed, job_id, folder):
    return back_up(installed.url, installed.store, folder)


@pytest.mark.usefixtures("taken")
class TestRefusals:
    def test_a_folder_with_something_in_it(self, installed, folder):
        with pytest.raises(BackupError, match="not empty"):
            back_up(installed.url, installed.store, folder)

    def test_a_database_with_jobs(self, installed, folder):
        with pytest.raises(BackupError, match="jobs already"):
            restore(installed.url, installed.store, folder)

    def test_a_database_in_use(self, installed, folder):
        installed.wipe()
        engine = make_engine(installed.url, application_name="worker w1")
        with engine.connect(), pytest.raises(BackupError, match="worker w1; stop"):
            restore(installed.url, installed.store, folder)
        engine.dispose()

    def test_a_backup_that_was_broken_off(self, installed, folder):
        (folder.root / "manifest.json").unlink()
        with pytest.raises(BackupError, match="no whole backup"):
            restore(installed.url, installed.store, folder)

    @pytest.mark.parametrize("name", ["tables/jobs.copy", "objects.jsonl"])
    def test_a_damaged_list(self, installed, folder, name):
        with (folder.root / name).open("a") as file:
            file.write("more\n")
        with pytest.raises(BackupError, match=re.escape(name)):
            restore(installed.url, installed.store, folder)

    def test_a_damaged_object_leaves_the_database_as_it_was(self, installed, folder):
        installed.wipe()
        [path] = folder.root.rglob("*.bin")
        path.write_bytes(DATA[::-1])
        with pytest.raises(BackupError, match=re.escape(path.name)):
            restore(installed.url, installed.store, folder)
        assert installed.content() == {}

    def test_secrets_that_could_not_be_opened(self, installed, folder):
        installed.wipe()
        other = Vault([SECRET_KEYS[::-1]])
        with pytest.raises(BackupError, match="which SECRET_KEYS lacks"):
            restore(installed.url, installed.store, folder, vault=other)
        assert installed.content() == {}
        restore(installed.url, installed.store, folder, vault=Vault([SECRET_KEYS[::-1], SECRET_KEYS]))

    def test_a_backup_of_a_newer_version(self, installed, folder):
        installed.wipe()
        path = folder.root / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "9999_next"}))
        with pytest.raises(BackupError, match="9999_next"):
            restore(installed.url, installed.store, folder)


def test_a_database_of_nobody(installed, empty_database_url, folder):
    with pytest.raises(BackupError, match="nothing to back up"):
        back_up(empty_database_url, installed.store, folder)


def test_a_key_that_leads_out_of_the_folder(folder):
    with pytest.raises(BackupError, match="name of a file"):
        folder.object("accounts/../../etc/passwd")


def test_a_backup_of_an_older_revision_is_brought_to_the_newest(installed, folder, monkeypatch):
    sessions = installed.sessions()
    job = make_job(sessions, make_account(sessions))
    installed.close()
    migrations.downgrade(installed.url, "0012_upload_links")
    installed_query = "SELECT key FROM artifacts"
    monkeypatch.setattr("deploy.backup.rows._NAMED", installed_query)
    monkeypatch.setattr("deploy.backup.rows.migrations.serves", lambda _: True)
    back_up(installed.url, installed.store, folder)
    monkeypatch.undo()
    installed.wipe()
    restore(installed.url, installed.store, folder)
    assert installed.scalars(select(Job.id)) == [job]
    engine = make_engine(installed.url)
    with engine.connect() as connection:
        assert migrations.current(connection) == migrations.head()
    engine.dispose()


def duolora(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "duolora.cli", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def files_of(client, job_id):
    return {artifact.name: httpx.get(artifact.url).content for artifact in client.job(job_id).result.artifacts}


def library_of(client):
    library = [client.lora(lora.id) for lora in client.loras()]
    return {(lora.id, lora.name, file.format, httpx.get(file.url).content) for lora in library for file in lora.files}


@pytest.mark.xdist_group("hosts")
def test_after_the_loss_of_everything_all_is_there_and_an_interrupted_job_goes_on(
    installed, service_environment, folder, tmp_path
):
    """Jobs, files, LoRAs, uploads and webhook endpoints, by the two commands."""
    environment = service_environment | QUICK
    key = issue_key(installed.sessions(), account="mine").text
    installed.close()
    samples = shipped_samples()
    pictures = {"content": samples.content[:2], "style": samples.style[:2], "subject_class": samples.subject_class}
    with webhook_receiver() as receiver:
        with running_services(environment, key, tmp_path / "before", api="tests.chaos.recipes") as services:
            client = services.client
            client.create_webhook(receiver.url, events=["job.succeeded"])
            upload = client.upload(samples.content[0])
            done = client.personalize(**pictures, engine="mock")
            assert client.wait(done.id, timeout_s=60).state == "succeeded"
            first = receiver.deliveries.get(timeout=30)
            broken_off = client.personalize(**pictures, recipe=APART, steps={"content": 16, "style": 4, "merge": 2})
            checkpoint = select(Stage.id).where(Stage.job_id == broken_off.id, Stage.checkpoint["step"].is_not(None))
            while not installed.scalars(checkpoint):
                assert services.processes["worker"].alive
                time.sleep(0.1)
            services.processes["worker"].kill()
            files = files_of(client, done.id)
            loras = library_of(client)
            webhooks = client.webhooks()
            result = duolora(environment, "backup", str(folder.root))
            assert result.returncode == 0, result.stderr
        installed.wipe()
        result = duolora(environment | {"SECRET_KEYS": SECRET_KEYS[::-1]}, "restore", str(folder.root))
        assert (result.returncode, "which SECRET_KEYS lacks" in result.stderr) == (1, True)
        result = duolora(environment, "restore", str(folder.root))
        assert result.returncode == 0, result.stderr
        with running_services(environment, key, tmp_path / "after", api="tests.chaos.recipes") as services:
            client = services.client
            assert {job.id for job in client.jobs()} == {done.id, broken_off.id}
            assert files_of(client, done.id) == files
            assert library_of(client) == loras
            assert client.webhooks() == webhooks
            assert client.read_upload(upload.id).sha256 == upload.sha256
            assert client.wait(broken_off.id, timeout_s=120).state == "succeeded"
            second = receiver.deliveries.get(timeout=30)
            assert receiver.deliveries.empty()
    assert json.loads(first.body)["data"]["job_id"] == done.id
    assert json.loads(second.body)["data"]["job_id"] == broken_off.id
    resumed = installed.scalars(select(StageAttempt.resumed_step).where(StageAttempt.attempt > ATTEMPTS_SKIPPED))
    assert any(step and step >= 1 for step in resumed)
