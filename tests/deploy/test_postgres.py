"""The embedded Postgres over its life: restarts, kills, other users."""

import os
import signal
import tempfile
from pathlib import Path

import psycopg
import pytest

from deploy.local import identity
from deploy.local.identity import namespace_identity, nobody_identity, reachable_binaries, reachable_folder
from deploy.local.postgres import Postgres, installed_postgres
from deploy.local.processes import LocalStackError
from tests.support.process_list import descendants, wait_until_gone

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def server(folder: Path, password: str = "secret", **options) -> Postgres:
    return Postgres(folder, password=password, log=folder.parent / "postgres.log", durable=False, **options)


def run(postgres: Postgres, statement: str):
    with psycopg.connect(postgres.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


def test_rows_survive_a_restart_and_a_kill(tmp_path):
    postgres = server(tmp_path / "pg")
    postgres.start()
    run(postgres, "create table kept as select 7 as n")
    postgres.stop()
    child = postgres.start()
    processes = descendants(os.getpid()) & ({child.process.pid} | descendants(child.process.pid))
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    postgres.start()
    assert run(postgres, "select n from kept") == [(7,)]
    postgres.stop()
    wait_until_gone(processes)


def test_a_pid_file_that_names_a_stranger_does_not_stop_it(tmp_path):
    postgres = server(tmp_path / "pg")
    child = postgres.start()
    pid_file = tmp_path / "pg" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))
    postgres.start()
    postgres.stop()


def test_a_cluster_that_was_made_half_is_made_again(tmp_path):
    (tmp_path / "pg" / "data.partial" / "base").mkdir(parents=True)
    postgres = server(tmp_path / "pg")
    postgres.start()
    postgres.stop()
    assert not (tmp_path / "pg" / "data.partial").exists()


def test_a_cluster_of_another_version_is_left_alone(tmp_path):
    data = tmp_path / "pg" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(LocalStackError, match="made by Postgres 16"):
        server(tmp_path / "pg").start()


@AS_ROOT
@pytest.mark.parametrize("closed", [False, True])
def test_root_without_namespaces_runs_it_as_nobody(monkeypatch, closed):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setattr(identity, "STATE_FOLDER", folder / "state")
        home = folder / "home"
        home.mkdir(mode=0o700 if closed else 0o755)
        postgres = server(home / "pg", identity=nobody_identity())
        for _ in range(2):
            child = postgres.start()
            assert Path(f"/proc/{child.process.pid}").stat().st_uid == nobody_identity().uid
            postgres.stop()
        assert (home / "pg").exists() is not closed
        assert home.stat().st_mode & 0o777 == (0o700 if closed else 0o755), "a parent's permissions were changed"
        assert home.stat().st_uid == 0


@AS_ROOT
def test_data_made_anew_at_the_same_place_does_not_meet_the_old_cluster(monkeypatch):
    """Removing the data folder removes its passwords, but not what lies under the state folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setattr(identity, "STATE_FOLDER", folder / "state")
        home = folder / "home"
        home.mkdir(mode=0o700)
        for password in ("first", "second"):
            postgres = server(home / "pg", identity=nobody_identity(), password=password)
            postgres.start()
            postgres.stop()


@AS_ROOT
def test_a_folder_may_change_between_the_two_ways_of_root(tmp_path_factory):
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        for chosen in (namespace_identity(), nobody_identity(), namespace_identity()):
            if chosen is None:
                pytest.skip("user namespaces are blocked here")
            postgres = server(Path(name) / "pg", identity=chosen)
            postgres.start()
            postgres.stop()


@AS_ROOT
def test_binaries_behind_a_closed_folder_are_copied_once(monkeypatch, tmp_path):
    install = tmp_path / "install"
    (install / "bin").mkdir(parents=True)
    (install / "bin" / "postgres").write_text("program")
    tmp_path.chmod(0o700)
    monkeypatch.setattr(identity, "STATE_FOLDER", tmp_path / "state")
    first = reachable_binaries(install, nobody_identity(), version="1")
    assert first != install
    assert (first / "bin" / "postgres").read_text() == "program"
    assert reachable_binaries(install, nobody_identity(), version="1") == first
    assert [path.name for path in (tmp_path / "state").iterdir()] == [first.name]
    assert reachable_binaries(install, nobody_identity(), version="2") != first, "another wheel's binaries were kept"


def test_an_ordinary_user_uses_things_where_they_are(tmp_path):
    me = identity.Identity()
    assert reachable_binaries(installed_postgres(), me, version="1") == installed_postgres()
    assert reachable_folder(tmp_path / "pg", me, installation="a") == tmp_path / "pg"
