"""`duolora up` as a user meets it: start, use, stop in every way, start again."""

import os
import re
import signal

import httpx
import pytest

from api.accounts.service import issue_key
from api.db import make_engine, session_factory
from deploy.local.owner import ACCOUNT
from deploy.local.processes import free_port
from tests.support.duolora_command import duolora
from tests.support.process_list import naming, wait_until_gone
from tests.support.vault import SECRET_KEYS, VAULT

pytestmark = [pytest.mark.xdist_group("up"), pytest.mark.timeout(120)]

# Six processes of their own and whatever each of them starts.
SERVICES = ["postgres", "valkey-server", "rclone", "-m api", "-m worker.dispatcher", "-m worker"]
NO_MODEL = {"WORKER_WARM_BASE": ""}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("up") / "data"


def up(data, name, **environment):
    return duolora(
        "up",
        f"--data={data}",
        f"--port={free_port()}",
        output=data.parent / f"{name}.txt",
        **NO_MODEL,
        **environment,
    )


def printed(text):
    return re.search(r"API +(http\S+)", text)[1], re.search(r"API key +(\S+)", text)[1]


def jobs(url, key):
    return httpx.get(f"{url}/jobs", headers={"Authorization": f"Bearer {key}"}).status_code


@pytest.fixture(scope="module")
def first_key(data):
    """Of a first start, which ended by Ctrl-C."""
    with up(data, "first") as command:
        url, key = printed(command.wait_for("API key"))
        assert jobs(url, key) == 200
        assert jobs(url, "duo_wrong") == 401
        assert f"console  {url}/#key={key}\n" in command.text()
        family = command.family()
        assert len(family) > len(SERVICES)
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(30) == 0
        assert "stopped" in command.text()
        wait_until_gone(family)
    return key


def assert_nothing_is_left(data):
    assert naming(str(data)) == []
    assert not (data / "lock").exists()
    assert not (data / "environment").exists()
    assert not (data / "postgres" / "data" / "postmaster.pid").exists()


def test_ctrl_c_leaves_no_process_and_no_lock(data, first_key):
    assert_nothing_is_left(data)


def test_a_killed_instance_leaves_no_process_and_starts_again_with_its_key(data, first_key):
    with up(data, "killed") as command:
        command.wait_for("API key")
        family = command.family()
        command.process.kill()
        command.process.wait()
        wait_until_gone(family)
    with up(data, "again") as command:
        url, key = printed(command.wait_for("API key"))
        assert key == first_key
        assert jobs(url, key) == 200
        with up(data, "rival") as rival:
            assert rival.process.wait(30) == 1
            assert f"another instance (process {command.process.pid}) is using" in rival.text()
        assert jobs(url, key) == 200
        family = command.family()
        command.process.terminate()
        assert command.process.wait(30) == 0
        wait_until_gone(family)
    assert_nothing_is_left(data)


def test_a_service_that_dies_ends_the_stack_and_is_named(data, first_key):
    with up(data, "broken") as command:
        command.wait_for("API key")
        family = command.family()
        dispatcher = next(line for line in naming("-m worker.dispatcher") if int(line.split()[0]) in family)
        os.kill(int(dispatcher.split()[0]), signal.SIGKILL)
        assert command.process.wait(40) == 1
        assert "dispatcher ended unexpectedly with status -9" in command.text()
        wait_until_gone(family)
    assert_nothing_is_left(data)


def test_servers_of_ones_own_replace_the_embedded_ones(tmp_path, service_environment):
    with up(tmp_path / "data", "own", **service_environment) as command:
        url, key = printed(command.wait_for("API key"))
        assert jobs(url, key) == 200
        lines = [line for line in naming(" ") if int(line.split()[0]) in command.family()]
        assert not [line for line in lines if re.search("postgres|valkey|rclone", line)]
        command.process.terminate()
        assert command.process.wait(30) == 0


def test_a_taken_port_is_said_so(tmp_path, valkey_server):
    taken = valkey_server.url.rsplit(":", 1)[1].split("/")[0]
    with duolora("up", f"--data={tmp_path}/data", f"--port={taken}", output=tmp_path / "out.txt") as command:
        assert command.process.wait(30) == 1
        assert f"port {taken} is taken" in command.text()


def test_a_weak_key_of_the_seals_is_refused_on_one_line_before_anything_starts(tmp_path):
    with up(tmp_path / "data", "weak", SECRET_KEYS="short") as command:
        assert command.process.wait(30) == 1
        assert "SECRET_KEYS: Value error, has a key of fewer than 32 characters; make one" in command.text()
        assert "Traceback" not in command.text()
    assert not (tmp_path / "data/postgres").exists()


def test_secrets_of_a_database_that_cannot_be_opened_are_said_with_the_remedy(
    tmp_path, service_environment, database_url
):
    engine = make_engine(database_url)
    issue_key(session_factory(engine, VAULT), account=ACCOUNT)
    engine.dispose()
    with up(tmp_path / "data", "locked", **service_environment | {"SECRET_KEYS": SECRET_KEYS[::-1]}) as command:
        assert command.process.wait(60) == 1
        assert "which SECRET_KEYS lacks; add it" in command.text()
        assert "Traceback" not in command.text()


def test_help_says_where_the_data_lives(tmp_path):
    with duolora("up", "--help", output=tmp_path / "help.txt", DUOLORA_DATA="/srv/mine") as command:
        assert command.process.wait(30) == 0
        assert "~/.local/share/duolora" in command.text()
        assert "/srv/mine" in command.text()


def test_a_folder_that_cannot_be_made_is_said_on_one_line(tmp_path):
    (tmp_path / "file").touch()
    with duolora("up", f"--data={tmp_path}/file/data", "--port=0", output=tmp_path / "out.txt") as command:
        assert command.process.wait(30) == 1
        assert "Traceback" not in command.text()
        assert "file/data" in command.text()
