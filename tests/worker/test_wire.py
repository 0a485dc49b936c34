"""The lines between a worker and its engine process."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from duolora.errors import Fault
from worker.wire import (
    Cancel,
    Checkpointed,
    CheckpointFile,
    Command,
    Done,
    Event,
    Failed,
    Finish,
    LogLine,
    Member,
    OutputFile,
    Pause,
    ProgressReport,
    Ready,
    Run,
    Shown,
    Warm,
    Warmed,
    WireError,
    parse_command,
    parse_event,
)

FULL_RUN = Run(
    id="a:1",
    members=tuple(
        Member(
            stage=stage,
            job_id=job,
            attempt=1,
            config={"rank": 4},
            inputs_dir=f"{job}/i",
            outputs_dir=f"{job}/{stage}/o",
            checkpoints_dir=f"{job}/{stage}/c",
            resume_dir=f"{job}/{stage}/r",
        )
        for job in ("j", "k")
        for stage in ("content_lora", "style_lora")
    ),
    base="tiny",
    checkpoint_every_s=0.5,
    finish_early=True,
    memory_profile="small",
    traceparent="00-aa-bb-01",
    request_id="r-1",
)
COMMANDS = [FULL_RUN, Cancel(id="a:1"), Pause(id="a:1"), Finish(id="a:1"), Warm(base="tiny")]
EVENTS = [
    Ready(engine_version="1", device="cpu", free_bytes=1),
    Warmed(base="tiny", revision="abc", held_bytes=5),
    ProgressReport(id="a:1", step=1, total=2, loss=0.5, note="n", losses=(0.25, 0.75)),
    Checkpointed(
        id="a:1",
        member=1,
        step=3,
        total=6,
        folder="c/3",
        paired=True,
        files=(CheckpointFile(name="state.safetensors", sha256="00", bytes=9),),
    ),
    Shown(id="s:1", output=OutputFile(name="training_content_000100", filename="x.png", content_type="image/png")),
    LogLine(id="a:1", level="INFO", message="encoding\ntwo lines"),
    Done(
        id="a:1",
        outputs=(OutputFile(name="n", filename="f", content_type="t", member=1),),
        finished_early=True,
        held_bytes=7,
    ),
    Failed(id="a:1", code="c", message="m", fault=Fault.MEMORY, held_bytes=7),
]


def test_every_kind_of_line_is_tried_here():
    assert {type(command) for command in COMMANDS} == set(get_args(Command))
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.op)
def test_commands_arrive_as_they_were_sent_each_in_one_line(command: Command):
    assert command.line().count(b"\n") == 1
    assert parse_command(command.line()) == command


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_events_arrive_as_they_were_sent_each_in_one_line(event: Event):
    assert event.line().count(b"\n") == 1
    assert parse_event(event.line()) == event


def test_a_run_knows_its_jobs_in_the_order_of_its_members():
    assert FULL_RUN.jobs == ["j", "k"]


def test_either_side_may_learn_new_words_first():
    line = json.dumps({"op": "pause", "id": "a:1", "gently": True}).encode()
    assert parse_command(line) == Pause(id="a:1")


@pytest.mark.parametrize("line", [b"", b"{}", b'{"op": "jump", "id": "x"}', b'{"op": "run", "id": "x"}', b"\xff"])
def test_what_is_no_command_is_refused(line: bytes):
    with pytest.raises(WireError):
        parse_command(line)
