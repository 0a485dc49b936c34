"""The folder of one stack: its lock and its secrets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.data_folder import FolderLock, OwnerKey, Secrets, default_data_folder
from deploy.local.processes import LocalStackError

HOLDER = """
import sys, time
from pathlib import Path
from deploy.local.data_folder import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_holder_is_refused_and_told_who_has_it(tmp_path):
    with FolderLock(tmp_path), pytest.raises(LocalStackError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path).__enter__()


def test_leaving_removes_the_lock(tmp_path):
    with FolderLock(tmp_path):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path.cwd()) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LocalStackError, match=f"process {holder.pid}"):
            FolderLock(tmp_path).__enter__()
        holder.kill()
    with FolderLock(tmp_path):
        pass


def test_secrets_stay_the_same_and_are_for_the_owner_only(tmp_path):
    first = Secrets(tmp_path)
    assert first.owner is None
    first.owner = OwnerKey("duo_x", "whsec_x")
    second = Secrets(tmp_path)
    assert second.owner == OwnerKey("duo_x", "whsec_x")
    assert second.postgres_password == first.postgres_password
    assert second.store_keys == first.store_keys
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_where_the_data_lives(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("DUOLORA_DATA", raising=False)
    assert default_data_folder() == Path("/somewhere/.local/share/duolora")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_folder() == tmp_path / "duolora"
    monkeypatch.setenv("DUOLORA_DATA", "~/mine")
    assert default_data_folder() == Path("/somewhere/mine")
