"""Children of the local stack: started, watched, stopped, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.local.processes import ServiceFailed, accepts, free_port, interrupted_by_signals, spawn
from tests.support.process_list import wait_until_gone

ENVIRONMENT = {"PATH": os.environ["PATH"]}

PARENT = """
import os, sys, time
from pathlib import Path
from deploy.local.processes import spawn
child = spawn("sleeper", ["sleep", "600"], log=Path(sys.argv[1]), env={"PATH": os.environ["PATH"]})
print(child.process.pid, flush=True)
time.sleep(600)
"""


def python(tmp_path: Path, code: str):
    return spawn("child", [sys.executable, "-c", code], log=tmp_path / "child.log", env=ENVIRONMENT, grace_s=0.3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has parent-death signals")
def test_a_child_dies_with_its_killed_parent(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, cwd=Path.cwd()
    ) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    wait_until_gone([pid])


def test_a_child_that_ignores_the_stop_signal_is_killed(tmp_path):
    child = python(
        tmp_path, "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    child.wait_ready(lambda: child.tail() == "1", timeout_s=10)
    began = time.monotonic()
    child.stop()
    assert child.process.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 5


def test_grandchildren_go_with_a_killed_child(tmp_path):
    child = python(
        tmp_path,
        "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN);"
        "print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)",
    )
    child.wait_ready(lambda: child.tail() != "", timeout_s=10)
    grandchild = int(child.tail())
    child.stop()
    wait_until_gone([grandchild])


def test_the_log_says_why_a_child_ended(tmp_path):
    child = python(tmp_path, "raise SystemExit('no such port')")
    with pytest.raises(ServiceFailed, match=r"child ended with status 1 while starting.*\n.*no such port"):
        child.wait_ready(lambda: False, timeout_s=10)


def test_a_child_that_never_gets_ready_is_reported_and_stopped(tmp_path):
    child = python(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(ServiceFailed, match="not ready after"):
        child.wait_ready(lambda: False, timeout_s=0.2)
    assert not child.alive


def test_the_log_of_the_run_before_is_kept(tmp_path):
    for word in ("first", "second"):
        python(tmp_path, f"print('{word}')").process.wait()
    assert (tmp_path / "child.log").read_text() == "second\n"
    assert (tmp_path / "child.log.1").read_text() == "first\n"


def test_a_free_port_is_not_listened_on():
    assert not accepts(free_port())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_way_of_being_told_to_stop_is_one_exception(number):
    before = signal.signal(number, signal.SIG_DFL)  # the suite itself may run under nohup
    try:
        with pytest.raises(KeyboardInterrupt, match=number.name), interrupted_by_signals():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hang_up_that_was_ignored_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
