"""The real engine process over its real pipe: paused, finished, ended by TERM or killed, and gone on with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from duolora.config import MergeConfig, PersonalizeConfig, Prompts, TargetLayers
from duolora.errors import Fault
from duolora.recipes import resolve
from tests.duolora.pico import draw_pictures
from worker.wire import (
    Cancel,
    Checkpointed,
    Done,
    Failed,
    Finish,
    LogLine,
    Member,
    Pause,
    ProgressReport,
    Ready,
    Run,
    Warm,
    Warmed,
    parse_event,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.wire import Command, Event

pytestmark = [pytest.mark.xdist_group("engine pipe"), pytest.mark.timeout(180)]

PATIENCE_S = 60
NEVER_S, ALWAYS_S = 1e6, 0.0
MANY_STEPS = 400
numbers = count(1)


class Engine:
    """An engine process and all that it said."""

    def __init__(self) -> None:
        root = Path(__file__).parents[3]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "worker.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env=os.environ | {"DUOLORA_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        )
        self._events: SimpleQueue[Event] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._events.put(parse_event(line))

    def send(self, command: Command) -> None:
        self.process.stdin.write(command.line())
        self.process.stdin.flush()

    def until(self, wanted: Callable[[Event], bool]) -> list[Event]:
        """Return all that is said up to the event that is wanted."""
        heard: list[Event] = []
        deadline = monotonic() + PATIENCE_S
        while not heard or not wanted(heard[-1]):
            try:
                heard.append(self._events.get(timeout=max(0.0, deadline - monotonic())))
            except Empty:
                pytest.fail(f"nothing of the kind within {PATIENCE_S} s, only {heard[-3:]}")
        return heard

    def end(self, run: Run) -> list[Event]:
        return self.until(lambda event: isinstance(event, Done | Failed) and event.id == run.id)

    def step(self, run: Run, step: int) -> list[Event]:
        """Wait until a run has taken so many steps."""
        return self.until(lambda event: isinstance(event, ProgressReport) and event.id == run.id and event.step >= step)

    def close(self) -> int:
        self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.stdout.close()


@contextmanager
def ready_engine(ends_with: int | None = None) -> Iterator[Engine]:
    """An engine process that is ready; it is closed afterwards, and then has this status if one is given."""
    engine = Engine()
    engine.until(lambda event: isinstance(event, Ready))
    yield engine
    status = engine.close()
    assert ends_with in {None, status}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The one engine process of this module, for tests that leave it alive."""
    with ready_engine(ends_with=0) as engine:
        yield engine


@pytest.fixture(scope="module")
def second_engine() -> Iterator[Engine]:
    """Another one, to go on in."""
    with ready_engine(ends_with=0) as engine:
        yield engine


@pytest.fixture
def own_engine() -> Iterator[Engine]:
    with ready_engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    draw_pictures(folder / "content", ((230, 40, 40), (40, 200, 60)))
    draw_pictures(folder / "style", ((40, 40, 230),))
    return folder


def config(location: str, *, company: float = 0.0, steps: int = 6) -> PersonalizeConfig:
    lean = resolve(
        "tiny", location, Prompts(subject_class="disc"), content_steps=steps, style_steps=steps + 1, rank=2, seed=3
    )
    side = {"batch_size": 2, "targets": TargetLayers.ATTENTION, "company": company}
    changes = {"content": side, "style": side, "preview": {"steps": 2, "images": 1}}
    return lean.model_copy(
        update={part: getattr(lean, part).model_copy(update=update) for part, update in changes.items()}
    )


def a_run(
    folder: Path,
    inputs: Path,
    settings: PersonalizeConfig,
    stage: str = "content_lora",
    *,
    partner: str | None = None,
    resume: dict[str, Path] | None = None,
    every_s: float = NEVER_S,
    **more: Any,
) -> Run:
    """A run with fresh folders; `resume` names the checkpoint of each stage."""
    number = next(numbers)
    names = [name for name in (stage, partner) if name is not None]
    places = {name: folder / f"{number}" / name for name in ("outputs", *names)}
    for place in places.values():
        place.mkdir(parents=True)
    resume_dirs = {name: str(path) for name, path in (resume or {}).items()}
    return Run(
        id=f"stage:{number}",
        members=tuple(
            Member(
                stage=name,
                job_id="job",
                attempt=number,
                config=settings.model_dump(mode="json"),
                inputs_dir=str(inputs),
                outputs_dir=str(places["outputs"]),
                checkpoints_dir=str(places[name]),
                resume_dir=resume_dirs.get(name),
            )
            for name in names
        ),
        base=settings.base_model,
        checkpoint_every_s=every_s,
        **more,
    )


def weights(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors that a run wrote, by file."""
    return {path.name: load_file(path) for path in outputs_dir(run).glob("*.safetensors")}


def outputs_dir(run: Run) -> Path:
    return Path(run.members[0].outputs_dir)


def checkpoints_dir(run: Run) -> Path:
    return Path(run.members[0].checkpoints_dir)


def stage_of(event: Checkpointed, run: Run) -> str:
    return run.members[event.member].stage


def assert_same_files(found: Run, expected: Run) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours
    assert ours.keys() == theirs.keys()
    for name, tensors in theirs.items():
        assert ours[name].keys() == tensors.keys()
        assert all(torch.equal(ours[name][key], tensor) for key, tensor in tensors.items()), name


def whole(engine: Engine, run: Run) -> Run:
    """Let a run end."""
    engine.send(run)
    done = engine.end(run)[-1]
    assert isinstance(done, Done), done
    return run


def checkpoints(heard: list[Event]) -> list[Checkpointed]:
    return [event for event in heard if isinstance(event, Checkpointed)]


def assert_complete(event: Checkpointed, run: Run) -> None:
    """The folder holds exactly the files that were told of, as they were told."""
    folder = Path(event.folder)
    assert folder == Path(run.members[event.member].checkpoints_dir) / str(event.step)
    assert {path.name for path in folder.iterdir()} == {file.name for file in event.files}
    for file in event.files:
        content = (folder / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)


KINDS = {
    "content": {"stage": "content_lora"},
    "style": {"stage": "style_lora"},
    "pair": {"stage": "style_lora", "partner": "content_lora"},
    "loras": {"stage": "loras"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_run_goes_on_in_another_process_to_the_same_files(
    *, engine: Engine, second_engine: Engine, tmp_path: Path, inputs: Path, location: str, kind: str
) -> None:
    settings = config(location, company=0.5 if kind == "loras" else 0.0, steps=20)
    run = a_run(tmp_path, inputs, settings, **KINDS[kind])
    engine.send(run)
    engine.step(run, 2)
    engine.send(Pause(id=run.id))
    heard = engine.end(run)

    assert isinstance(heard[-1], Failed)
    assert (heard[-1].code, heard[-1].fault) == ("cancelled", Fault.CANCELLED)
    assert list(outputs_dir(run).iterdir()) == []
    kept = checkpoints(heard)
    assert [stage_of(event, run) for event in kept] == list(KINDS[kind].values())
    assert heard.index(kept[-1]) < len(heard) - 1
    for event in kept:
        assert_complete(event, run)
        assert event.paired == (kind == "pair")
        assert 2 <= event.step < event.total

    resume = {stage_of(event, run): Path(event.folder) for event in kept}
    again = a_run(tmp_path, inputs, settings, resume=resume, **KINDS[kind])
    second_engine.send(again)
    reports = [event for event in second_engine.end(again) if isinstance(event, ProgressReport)]

    assert reports[0].step == kept[0].step
    assert_same_files(again, whole(engine, a_run(tmp_path, inputs, settings, **KINDS[kind])))


@pytest.fixture(scope="module")
def trained(engine: Engine, inputs: Path, location: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of a merge and of a preview: pictures, both LoRAs, and a merge of them."""
    folder = Path(shutil.copytree(inputs, tmp_path_factory.mktemp("trained") / "inputs"))
    settings = config(location, steps=2)
    runs = [KINDS["pair"], {"stage": "merge"}]
    for kind in runs:
        run = whole(engine, a_run(folder.parent, folder, settings, **kind))
        shutil.copytree(outputs_dir(run), folder, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("method", ["rank-masks", "release"])
def test_a_paused_merge_goes_on_in_another_process_to_the_same_files(
    *, engine: Engine, second_engine: Engine, tmp_path: Path, trained: Path, location: str, method: str
) -> None:
    settings = config(location)
    steps = 24 if method == "release" else 6  # its steps are short
    merge = MergeConfig(method=method, steps=steps, batch_size=1, bank_size=2)
    settings = settings.model_copy(update={"merge": merge})
    run = a_run(tmp_path, trained, settings, "merge")
    engine.send(run)
    engine.step(run, 1)
    engine.send(Pause(id=run.id))
    heard = engine.end(run)

    assert heard[-1].code == "cancelled"
    [kept] = checkpoints(heard)
    assert_complete(kept, run)
    again = a_run(tmp_path, trained, settings, "merge", resume={"merge": Path(kept.folder)})
    second_engine.send(again)
    reports = [event for event in second_engine.end(again) if isinstance(event, ProgressReport)]
    assert (reports[0].step, reports[-1].step) == (kept.step, steps)
    expected = whole(engine, a_run(tmp_path, trained, settings, "merge"))
    assert_same_files(again, expected)
    ours, theirs = (json.loads((outputs_dir(each) / "merge_report.json").read_text()) for each in (again, expected))
    assert ours["losses"] == theirs["losses"]


def test_a_preview_goes_on_with_the_samplings_that_it_has(
    engine: Engine, tmp_path: Path, trained: Path, location: str
) -> None:
    settings = config(location)
    first = a_run(tmp_path, trained, settings, "package")
    engine.send(first)
    kept = checkpoints(engine.end(first))
    assert [event.step for event in kept] == [2, 4]

    again = a_run(tmp_path, trained, settings, "package", resume={"package": Path(kept[-1].folder)})
    engine.send(again)
    steps = [event.step for event in engine.end(again) if isinstance(event, ProgressReport)]

    assert steps == [5, 6]
    pictures = [(outputs_dir(run) / "preview.png").read_bytes() for run in (first, again)]
    assert pictures[0] == pictures[1]


def test_every_stage_runs_with_the_small_profile(engine: Engine, tmp_path: Path, trained: Path, location: str) -> None:
    settings = config(location, steps=2)
    merge = MergeConfig(steps=1, batch_size=1, bank_size=2)
    settings = settings.model_copy(update={"merge": merge})
    for stage in ("content_lora", "style_lora", "merge", "package"):
        small = whole(engine, a_run(tmp_path, trained, settings, stage, memory_profile="small"))
        assert list(outputs_dir(small).iterdir())


def test_a_killed_process_loses_what_came_after_its_last_checkpoint_and_nothing_else(
    *, engine: Engine, own_engine: Engine, tmp_path: Path, inputs: Path, location: str
) -> None:
    settings = config(location, steps=15)
    run = a_run(tmp_path, inputs, settings, every_s=ALWAYS_S)
    own_engine.send(run)
    heard = own_engine.until(lambda event: isinstance(event, Checkpointed) and event.step >= 5)
    own_engine.process.kill()
    own_engine.process.wait()
    last = checkpoints(heard)[-1]

    again = a_run(tmp_path, inputs, settings, resume={run.members[0].stage: Path(last.folder)})
    engine.send(again)
    heard = engine.end(again)

    assert next(event.step for event in heard if isinstance(event, ProgressReport)) == last.step
    assert any(isinstance(event, LogLine) and f"going on from step {last.step}" in event.message for event in heard)
    assert_same_files(again, whole(engine, a_run(tmp_path, inputs, settings)))


def test_checkpoints_are_kept_as_often_as_asked_and_always_at_the_end(
    engine: Engine, tmp_path: Path, inputs: Path, location: str
) -> None:
    settings = config(location, steps=4)
    often, seldom = (a_run(tmp_path, inputs, settings, every_s=every_s) for every_s in (ALWAYS_S, NEVER_S))
    steps = []
    for run in (often, seldom):
        engine.send(run)
        kept = checkpoints(engine.end(run))
        for event in kept:
            assert_complete(event, run)
        steps.append([event.step for event in kept])
    assert steps == [[1, 2, 3, 4], [4]]
    assert_same_files(often, seldom)

    ended = a_run(tmp_path, inputs, settings, resume={"content_lora": checkpoints_dir(seldom) / "4"})
    engine.send(ended)
    heard = engine.end(ended)
    assert all(event.loss is None for event in heard if isinstance(event, ProgressReport))
    assert_same_files(ended, seldom)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_to_finish_ends_well_at_its_next_step(
    engine: Engine, tmp_path: Path, inputs: Path, location: str, kind: str
) -> None:
    settings = config(location, company=0.5 if kind == "loras" else 0.0, steps=MANY_STEPS)
    run = a_run(tmp_path, inputs, settings, **KINDS[kind])
    engine.send(run)
    engine.step(run, 3)
    engine.send(Finish(id=run.id))
    heard = engine.end(run)

    assert isinstance(heard[-1], Done)
    assert heard[-1].finished_early
    assert 3 <= checkpoints(heard)[0].step < MANY_STEPS
    assert {output.filename for output in heard[-1].outputs} == {path.name for path in outputs_dir(run).iterdir()}

    resume = {stage_of(event, run): Path(event.folder) for event in checkpoints(heard)}
    short = a_run(tmp_path, inputs, settings, resume=resume, finish_early=True, **KINDS[kind])
    engine.send(short)
    heard_again = engine.end(short)
    assert heard_again[-1].finished_early
    assert checkpoints(heard_again)[0].step == checkpoints(heard)[0].step + 1


def test_a_run_that_was_not_asked_to_finish_is_not_said_to_have(
    engine: Engine, tmp_path: Path, inputs: Path, location: str
) -> None:
    run = a_run(tmp_path, inputs, config(location, steps=2))
    engine.send(Finish(id="another"))
    engine.send(run)
    assert not engine.end(run)[-1].finished_early


def test_a_cancelled_run_writes_no_checkpoint(engine: Engine, tmp_path: Path, inputs: Path, location: str) -> None:
    run = a_run(tmp_path, inputs, config(location, steps=MANY_STEPS))
    engine.send(run)
    engine.step(run, 1)
    engine.send(Cancel(id=run.id))
    heard = engine.end(run)

    assert heard[-1].code == "cancelled"
    assert checkpoints(heard) == []
    assert list(checkpoints_dir(run).iterdir()) == []


def test_term_pauses_a_run_and_ends_the_process_in_good_order(
    own_engine: Engine, engine: Engine, tmp_path: Path, inputs: Path, location: str
) -> None:
    settings = config(location, steps=20)
    run = a_run(tmp_path, inputs, settings)
    own_engine.send(run)
    own_engine.step(run, 2)
    own_engine.process.send_signal(signal.SIGTERM)
    heard = own_engine.end(run)

    assert own_engine.process.wait(PATIENCE_S) == 0
    [kept] = checkpoints(heard)
    assert_complete(kept, run)
    again = whole(engine, a_run(tmp_path, inputs, settings, resume={run.members[0].stage: Path(kept.folder)}))
    assert_same_files(again, whole(engine, a_run(tmp_path, inputs, settings)))


def test_term_ends_an_idle_process_at_once(own_engine: Engine) -> None:
    own_engine.process.send_signal(signal.SIGTERM)
    assert own_engine.process.wait(10) == 0


@pytest.mark.parametrize("damage", ["torn", "gone", "other pictures", "half a pair"])
def test_a_checkpoint_that_cannot_be_used_is_said_to_be_so(
    engine: Engine, tmp_path: Path, inputs: Path, location: str, damage: str
) -> None:
    settings = config(location, steps=2)
    folder = checkpoints_dir(whole(engine, a_run(tmp_path, inputs, settings))) / "2"
    kind = KINDS["pair" if damage == "half a pair" else "content"]
    if damage == "torn":
        path = folder / "content.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        shutil.rmtree(folder)
    elif damage == "other pictures":
        inputs = Path(shutil.copytree(inputs, tmp_path / "inputs"))
        draw_pictures(inputs / "content", ((0, 0, 0), (40, 200, 60)))
    run = a_run(tmp_path, inputs, settings, resume={"content_lora": folder}, **kind)

    engine.send(run)
    failed = engine.end(run)[-1]

    assert isinstance(failed, Failed)
    assert (failed.code, failed.fault) == ("checkpoint_unusable", Fault.INFRASTRUCTURE)


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(
    engine: Engine, tmp_path: Path, inputs: Path, location: str
) -> None:
    run = a_run(tmp_path, inputs, config(location, steps=2), every_s=ALWAYS_S)
    shutil.rmtree(checkpoints_dir(run))
    engine.send(run)
    heard = engine.end(run)

    assert isinstance(heard[-1], Done)
    assert checkpoints(heard) == []
    told = [event for event in heard if isinstance(event, LogLine)]
    assert [(event.level, event.message) for event in told if event.level == "warning"] == [
        ("warning", f"no checkpoint of step {step}: No such file or directory") for step in (1, 2)
    ]


def test_a_warmed_base_has_a_revision_and_memory_is_told_of(
    engine: Engine, tmp_path: Path, inputs: Path, location: str
) -> None:
    engine.send(Warm(base=location))
    warmed = engine.until(lambda event: isinstance(event, Warmed))[-1]
    assert warmed.revision.startswith("files:")
    engine.send(Warm(base="tiny"))
    tiny = engine.until(lambda event: isinstance(event, Warmed))[-1]
    assert tiny.revision != warmed.revision
    assert 50 << 20 < tiny.held_bytes < 8 << 30

    runs = [a_run(tmp_path, inputs, config(location, steps=steps)) for steps in (3, 3, 3)]
    held = []
    for run in runs:
        engine.send(run)
        held.append(engine.end(run)[-1].held_bytes)
    assert held[-1] - held[0] < 64 << 20, "a run leaves memory behind"


def test_a_checkpoint_says_what_it_is_of(engine: Engine, tmp_path: Path, inputs: Path, location: str) -> None:
    run = whole(engine, a_run(tmp_path, inputs, config(location, steps=2)))

    state = json.loads((checkpoints_dir(run) / "2" / "state.json").read_text())

    assert (state["step"], state["total"], list(state["parts"])) == (2, 2, ["content"])
