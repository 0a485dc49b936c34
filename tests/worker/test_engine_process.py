"""The engine process and its supervisor across the real pipe; only the stages are replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from itertools import count
from typing import TYPE_CHECKING

import pytest

from duolora.config import Prompts
from duolora.errors import Fault
from duolora.recipes import tiny
from tests.worker.bench import PATIENCE_S, REPOSITORY, eventually, is_running
from worker.mailbox import Interrupt, Interruption, Mailbox
from worker.settings import EngineSettings
from worker.supervisor import EngineDied, EngineSupervisor, StageFailed, StageInterrupted
from worker.wire import Member, ProgressReport, Run, WireError, parse_command, parse_event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = (sys.executable, "-m", "tests.worker.fake_stages")


@pytest.fixture(scope="module")
def mailbox() -> Mailbox:
    return Mailbox()


def new_supervisor(mailbox: Mailbox) -> EngineSupervisor:
    settings = EngineSettings(command=COMMAND, start_timeout_s=30, cancel_grace_s=5, term_grace_s=1)
    environment = settings.environment(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
    return EngineSupervisor(settings, env=environment, mailbox=mailbox)


@pytest.fixture(scope="module")
def supervisor(mailbox: Mailbox) -> Iterator[EngineSupervisor]:
    supervisor = new_supervisor(mailbox)
    yield supervisor
    supervisor.stop()


numbers = count(1)
"""As in the service, no two runs share an id."""


def command(folder: Path, recipe: str = "fine") -> Run:
    number = next(numbers)
    config = tiny("tiny", Prompts()).model_copy(update={"recipe": recipe}).model_dump(mode="json")
    return Run(
        id=f"stage:{number}",
        members=(
            Member(
                stage="content_lora",
                job_id="job",
                attempt=number,
                config=config,
                inputs_dir=str(folder),
                outputs_dir=str(folder),
                checkpoints_dir=str(folder),
            ),
        ),
        base="tiny",
        traceparent="00-aa-bb-01",
        request_id="r-1",
    )


def test_a_stage_runs_and_what_libraries_print_does_not_disturb(supervisor, tmp_path):
    supervisor.ensure_running(warm_base="tiny")
    news = []
    done = supervisor.run(command(tmp_path), news.append)
    reports = [told for told in news if isinstance(told, ProgressReport)]
    assert [output.filename for output in done.outputs] == ["x.json"]
    assert done.timings["run_s"] >= 0
    assert done.peak_bytes >= done.held_bytes // 2 > 0
    assert (tmp_path / "x.json").exists()
    assert reports[-1].step == reports[-1].total == 1_000
    assert reports[0].note == "training"
    assert len(reports) < 500, "a fast loop must not write a line a step"


def test_its_log_lines_name_the_trace_and_the_request_of_the_run(tmp_path, capfd):
    engine = new_supervisor(Mailbox())
    engine.ensure_running()
    engine.run(command(tmp_path, "speaking"), lambda _report: None)
    engine.stop()
    spoken = next(json.loads(line) for line in capfd.readouterr().err.splitlines() if "a stage speaks" in line)
    assert (spoken["job"], spoken["traceparent"], spoken["request_id"]) == ("job", "00-aa-bb-01", "r-1")


def test_an_error_of_the_engine_arrives_with_code_and_fault_and_the_process_goes_on(supervisor, tmp_path):
    supervisor.ensure_running()
    before = supervisor.pid
    with pytest.raises(StageFailed) as caught:
        supervisor.run(command(tmp_path, "picture"), lambda _report: None)
    assert caught.value.failure.code == "invalid_image"
    assert caught.value.failure.fault is Fault.CALLER
    supervisor.run(command(tmp_path), lambda _report: None)
    assert supervisor.pid == before


def test_a_bug_is_told_without_its_text_and_ends_the_process(supervisor, tmp_path):
    supervisor.ensure_running()
    with pytest.raises(StageFailed) as caught:
        supervisor.run(command(tmp_path, "bug"), lambda _report: None)
    assert caught.value.failure.code == "internal_error"
    assert caught.value.failure.fault is Fault.INFRASTRUCTURE
    assert "secret" not in caught.value.failure.message
    eventually(lambda: not supervisor.is_alive())


def test_a_configuration_that_cannot_be_read_is_the_callers_fault(supervisor, tmp_path):
    supervisor.ensure_running()
    run = command(tmp_path)
    broken = run.model_copy(
        update={"members": (run.members[0].model_copy(update={"config": {"from": "a later version"}}),)}
    )
    with pytest.raises(StageFailed) as caught:
        supervisor.run(broken, lambda _report: None)
    assert caught.value.failure.code == "invalid_config"


@pytest.mark.parametrize("reason", [Interrupt.CANCEL, Interrupt.LEASE_LOST, Interrupt.REGROUP, Interrupt.SHUTDOWN])
def test_a_run_stops_when_asked_and_the_process_stays(supervisor, mailbox, tmp_path, reason):
    supervisor.ensure_running()
    pid = supervisor.pid
    run = command(tmp_path, "endless")
    started = threading.Event()
    asker = threading.Thread(target=lambda: started.wait(PATIENCE_S) and mailbox.post(Interruption(reason, run.id)))
    asker.start()
    with pytest.raises(StageInterrupted) as caught:
        supervisor.run(run, lambda _report: started.set())
    asker.join()
    assert caught.value.reason is reason
    assert supervisor.is_alive()
    assert supervisor.pid == pid


def test_a_cancel_of_another_run_is_not_heard(supervisor, mailbox, tmp_path):
    supervisor.ensure_running()
    mailbox.post(Interruption(Interrupt.CANCEL, "another:1"))
    assert supervisor.run(command(tmp_path), lambda _report: None).outputs


@pytest.mark.parametrize("base", ["broken", "pointer"])
def test_a_base_that_cannot_be_loaded_early_does_not_keep_the_engine_from_starting(base):
    settings = EngineSettings(command=COMMAND, term_grace_s=1)
    supervisor = EngineSupervisor(settings, env=settings.environment(os.environ), mailbox=Mailbox())
    try:
        supervisor.ensure_running(warm_base=base)
        assert supervisor.is_alive()
    finally:
        supervisor.stop()
    assert not supervisor.is_alive()
    with pytest.raises(EngineDied):
        supervisor.run(command(REPOSITORY), lambda _report: None)


@pytest.mark.parametrize(("words", "status"), [(b"", 0), (b"nonsense\n", 1)])
def test_the_process_ends_with_its_parent_or_when_the_two_do_not_fit_together(words: bytes, status: int):
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
    out, _ = process.communicate(words, timeout=PATIENCE_S)
    assert process.returncode == status
    assert out.startswith(b'{"event":"ready"')
    assert not is_running(process.pid)


@pytest.mark.parametrize("line", [b"", b"[]", b'{"op":"dance"}', b'{"op":"cancel"}', b'{"event":"ready"}'])
def test_a_line_is_a_message_or_an_error(line: bytes):
    with pytest.raises(WireError):
        parse_command(line)
    with pytest.raises(WireError):
        parse_event(line)


def test_a_message_survives_the_pipe(tmp_path):
    run = command(tmp_path)
    assert parse_command(run.line()) == run
    assert run.line().count(b"\n") == 1
