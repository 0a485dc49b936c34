"""The mock engine: takes a run as the engine process does, learns nothing, and leaves small files that say so.

It works in the worker's own process and needs no torch. Everything around it is real: queue, lease, pictures from the
store, progress, log, interruptions, artifacts, webhooks. Its results never get into the library, as it knows no
revision of any base (`api.jobs.library.reuse_key`).
"""

from __future__ import annotations

import io
import json
from math import prod
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, PngImagePlugin

from api.jobs.engines import EngineName, MockOutcome
from duolora.errors import Fault
from worker.mailbox import Interrupt, Interruption
from worker.supervisor import StageFailed, StageInterrupted
from worker.wire import Done, Failed, LogLine, OutputFile, ProgressReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.mailbox import Mailbox
    from worker.supervisor import News
    from worker.wire import Member, Run

STEPS = 10
STEP_S = 0.015
"""A job of four stages takes a second or two, nearly all of it on its way through the service."""
SLOW_STEP_S = 0.8

SAFETENSORS = "application/octet-stream"
_LEARN_NOTHING = ("generate", "package")
"""Stages that tell no loss, as those of an engine."""
_LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
_RANK, _WIDTH = 4, 8
_BYTES_OF_HALF = 2
_PICTURE_PX = 256


class MockEngine:
    """Runs stages of mock jobs, and ends them as the jobs wish.

    Args:
        mailbox: of the worker; who cancels or stops a job says so there.
    """

    version = EngineName.MOCK.value

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._outcome = MockOutcome.SUCCEED

    def that_ends(self, outcome: MockOutcome) -> MockEngine:
        """Return the engine, its runs from now on ending so."""
        self._outcome = outcome
        return self

    def revision_of(self, base: str, run_id: str) -> str | None:  # noqa: ARG002 - as the supervisor's
        """Return None: nothing is known of any base, so no result is taken from the library or kept for it."""
        return None

    def stop(self) -> None:
        """Do nothing: there is no process."""

    def run(self, command: Run, on_news: Callable[[News], None]) -> Done:
        """Take some steps, then write the outputs of all members.

        Raises:
            StageFailed: halfway, with `mock_failure`, if the outcome is `fail`.
            StageInterrupted: it was canceled or given back, or its lease is lost.
        """
        began = monotonic()
        on_news(LogLine(id=command.id, level="info", message="the mock engine learns nothing"))
        wait_s = SLOW_STEP_S if self._outcome is MockOutcome.SLOW else STEP_S
        learns = any(member.stage not in _LEARN_NOTHING for member in command.members)
        finished_early = command.finish_early
        for step in range(1, STEPS + 1):
            finished_early = finished_early or self._is_to_finish(command, monotonic() + wait_s)
            if finished_early:
                break
            loss = 1 / step if learns else None
            on_news(ProgressReport(id=command.id, step=step, total=STEPS, loss=loss, note="mock"))
            if self._outcome is MockOutcome.FAIL and step * 2 >= STEPS:
                raise StageFailed(
                    Failed(
                        id=command.id,
                        code="mock_failure",
                        message="the job asked the mock engine to fail",
                        fault=Fault.CALLER,
                    )
                )
        outputs = [
            output.model_copy(update={"member": place})
            for place, member in enumerate(command.members)
            for output in write_outputs(member)
        ]
        timings = {"mock_s": round(monotonic() - began, 3)}
        return Done(id=command.id, outputs=tuple(outputs), timings=timings, finished_early=finished_early)

    def _is_to_finish(self, command: Run, until: float) -> bool:
        """Wait until an instant; say whether the job's owner wants what there is.

        Raises:
            StageInterrupted: somebody wants the run to end otherwise.
        """
        while (message := self._mailbox.take_until(until)) is not None:
            if not isinstance(message, Interruption) or message.run_id not in {None, command.id}:
                continue
            if message.reason is not Interrupt.FINISH:
                raise StageInterrupted(message.reason)
            return True
        return False


def write_outputs(member: Member) -> Iterator[OutputFile]:
    """Write the files that a stage would leave, under the names they would have."""
    folder = Path(member.outputs_dir)
    for name, filename in (*_pictures(member), *_FILES.get(member.stage, _LAST)):
        yield _write(member, folder, name, filename)


def _pictures(member: Member) -> list[tuple[str, str]]:
    """Return names and files of the pictures that a job asked for: a slider's, or those of its prompts."""
    names: list[str] = []
    if member.stage == "package":
        names = [f"slider_{place}" for place in range(member.config.get("slider", 0))]
    elif member.stage == "generate":
        count = len(member.config["prompts"]) * member.config["sampling"]["images"]
        names = [f"picture_{place:03d}" for place in range(count)]
    return [(name, f"{name}.png") for name in names]


_SIDE_FILES = {
    side: ((f"{side}_lora", f"{side}_lora.safetensors"), (f"{side}_lora_kohya", f"{side}_lora.kohya.safetensors"))
    for side in ("content", "style")
}
_LAST = (("preview", "preview.png"), ("report", "report.json"))
_FILES: dict[str, tuple[tuple[str, str], ...]] = {
    "content_lora": _SIDE_FILES["content"],
    "style_lora": _SIDE_FILES["style"],
    "loras": _SIDE_FILES["content"] + _SIDE_FILES["style"],
    "merge": (
        ("merged_diffusers", "merged.diffusers.safetensors"),
        ("merged_kohya", "merged.kohya.safetensors"),
        ("merge_report", "merge_report.json"),
        ("merge_plot", "merge_plot.png"),
    ),
}
"""Names and files by stage, as `worker.engine.stages` leaves them."""


def _write(member: Member, folder: Path, name: str, filename: str) -> OutputFile:
    kind = filename.rpartition(".")[2]
    if kind == "safetensors":
        content, content_type = lora_file(kohya="kohya" in filename), SAFETENSORS
    elif kind == "png":
        content, content_type = _picture(name), "image/png"
    else:
        content, content_type = _report(member), "application/json"
    (folder / filename).write_bytes(content)
    return OutputFile(name=name, filename=filename, content_type=content_type)


def lora_file(*, kohya: bool) -> bytes:
    """Return the file of a LoRA of one layer that changes nothing: all its numbers are 0.

    The format is an 8-byte length, a JSON header and the bytes; the library that writes it takes addresses of arrays,
    of which there are none here.
    """
    down, up, layer = ("lora_A", "lora_B", _LAYER)
    if kohya:
        down, up, layer = ("lora_down", "lora_up", "lora_" + _LAYER.replace(".", "_"))
    shapes = {f"{layer}.{down}.weight": [_RANK, _WIDTH], f"{layer}.{up}.weight": [_WIDTH, _RANK]}
    if kohya:
        shapes[f"{layer}.alpha"] = []
    metadata = {"format": "pt", "modelspec.title": "DuoLoRA mock", "duolora.engine": EngineName.MOCK}
    header: dict[str, object] = {"__metadata__": metadata}
    length = 0
    for name, shape in shapes.items():
        end = length + _BYTES_OF_HALF * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [length, end]}
        length = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(length)


def _picture(name: str) -> bytes:
    """Return a picture that says what it is."""
    picture = Image.new("RGB", (_PICTURE_PX, _PICTURE_PX), (226, 226, 232))
    ImageDraw.Draw(picture).text((20, 20), f"mock\n{name}", fill=(60, 60, 80), font_size=32)
    words = PngImagePlugin.PngInfo()
    words.add_text("duolora.engine", EngineName.MOCK)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=words)
    return buffer.getvalue()


def _report(member: Member) -> bytes:
    inputs = sorted(path.name for path in Path(member.inputs_dir).rglob("*") if path.is_file())
    said = {"engine": EngineName.MOCK, "stage": member.stage, "inputs": inputs, "config": member.config}
    return json.dumps(said, indent=1).encode()
