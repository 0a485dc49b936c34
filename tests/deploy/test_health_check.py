"""What tells the engine whether a container's process is well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.metrics import exposed, process_registry
from api.settings import MetricsSettings
from deploy.local.processes import free_port
from tests.support.webhook_receiver import webhook_receiver

PROGRAM = Path(__file__).parents[2] / "deploy" / "health_check.py"


def status(health):
    command = [sys.executable, "-I", "-S", str(PROGRAM)]
    return subprocess.run(command, env=os.environ | {"HEALTH": health}, capture_output=True, check=False).returncode


@pytest.fixture
def port():
    """Of a server that answers GET with 501."""
    with webhook_receiver() as receiver:
        yield receiver.url.rsplit(":", 1)[1].split("/")[0]


def test_an_answer_with_success_is_well():
    with exposed(MetricsSettings(port=0), process_registry()) as port:
        assert status(f"{port}/metrics") == 0


def test_a_refusal_is_not_well(port):
    assert status(f"{port}/metrics") == 1


def test_silence_is_not_well():
    assert status(f"{free_port()}/metrics") == 1
