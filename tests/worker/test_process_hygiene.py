"""What the worker's processes load and hand down."""

from __future__ import annotations

import subprocess
import sys

import pytest

from worker import settings as settings_module
from worker.app import broker_url
from worker.settings import EngineSettings

MODULES = ("worker.app", "worker.tasks", "worker.__main__", "worker.dispatcher.__main__")


def test_only_the_engine_process_loads_torch_and_none_loads_fastapi():
    code = f"import {', '.join(MODULES)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert "celery" in loaded
    assert not {"torch", "diffusers", "peft", "transformers", "numpy", "fastapi", "starlette"} & set(loaded)


def test_the_engine_gets_no_secrets_and_a_bounded_number_of_threads():
    inherited = {
        "PATH": "/bin",
        "HF_HOME": "/models",
        "DATABASE_URL": "x",
        "REDIS_URL": "x",
        "S3_ENDPOINT": "x",
        "S3_SECRET_ACCESS_KEY": "x",
        "MY_PASSWORD": "x",
    }
    environment = EngineSettings(threads=3).environment(inherited | {"OMP_NUM_THREADS": "64"})
    threads = {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3"}
    assert environment == {"PATH": "/bin", "HF_HOME": "/models"} | threads


def test_threads_leave_one_core_to_the_rest_of_the_stack_unless_the_operator_said_otherwise(monkeypatch):
    monkeypatch.setattr(settings_module, "usable_cores", lambda: 7)
    assert EngineSettings(threads=None).environment({})["OMP_NUM_THREADS"] == "6"
    assert EngineSettings(threads=None).environment({"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("150000 100000", 2), ("10000 100000", 1), ("6400000 100000", 8)]
)
def test_the_quota_of_a_container_bounds_the_cores(monkeypatch, tmp_path, quota: str, expected: int):
    monkeypatch.setattr(settings_module.os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(settings_module, "CGROUP_CPU_MAX", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota)
    assert settings_module.usable_cores() == expected


@pytest.mark.parametrize(
    ("redis", "celery"),
    [
        ("redis://:p@h:1/2", "redis://:p@h:1/2"),
        ("unix:///run/v.sock", "redis+socket:///run/v.sock?virtual_host=0"),
        ("unix://:p@/run/v.sock?db=3", "redis+socket://:p@/run/v.sock?virtual_host=3"),
        ("redis+socket:///s", "redis+socket:///s"),
    ],
)
def test_a_unix_socket_gets_celerys_spelling(redis: str, celery: str):
    assert broker_url(redis) == celery
