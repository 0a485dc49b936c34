"""The lines that a worker and its engine process exchange: one JSON object a line, both directions. Torch-free.

Parent to child (stdin): `run`, `cancel`, `warm`; the end of the stream means exit.
Child to parent (the child's original stdout): `ready`, `warmed`, `progress`, `done`, `failed`.
Both sides parse with the classes below, so that a message either has its agreed shape or is refused as `WireError`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from duolora.errors import Fault


class WireError(Exception):
    """A line does not follow the protocol."""


class _Message(BaseModel):
    """Immutable; unknown keys are ignored, so that either side may learn new words first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def line(self) -> bytes:
        """Encode as one line, its end included."""
        return self.model_dump_json().encode() + b"\n"


class Run(_Message):
    """Run one stage. `id` names the attempt in every answer."""

    op: Literal["run"] = "run"
    id: str
    stage: str
    job_id: str
    attempt: int
    base: str
    """Location of the base model: a folder, a hub id, a single file, or the name of an embedded one."""
    config: dict[str, Any]
    inputs_dir: str
    outputs_dir: str
    checkpoint: dict[str, Any] | None = None
    traceparent: str | None = None


class Cancel(_Message):
    """Stop the run `id` at its next step; ignored when it is not running."""

    op: Literal["cancel"] = "cancel"
    id: str


class Warm(_Message):
    """Load a base model now, so that the first job finds it loaded."""

    op: Literal["warm"] = "warm"
    base: str


class Ready(_Message):
    """The child has imported its libraries and takes commands."""

    event: Literal["ready"] = "ready"
    engine_version: str
    device: str


class Warmed(_Message):
    """The child answers `warm`; `error` says why the base could not be loaded."""

    event: Literal["warmed"] = "warmed"
    base: str
    error: str | None = None


class ProgressReport(_Message):
    """One report of the running stage (duolora.events.Progress)."""

    event: Literal["progress"] = "progress"
    id: str
    step: int
    total: int
    loss: float | None = None
    note: str = ""


class OutputFile(_Message):
    """One file that a stage left in its outputs folder."""

    name: str
    filename: str
    content_type: str


class Done(_Message):
    """The stage is finished; its files are complete on disk. Timings are seconds by name."""

    event: Literal["done"] = "done"
    id: str
    outputs: tuple[OutputFile, ...]
    timings: dict[str, float] = {}


class Failed(_Message):
    """The stage could not be done."""

    event: Literal["failed"] = "failed"
    id: str
    code: str
    message: str
    fault: Fault


Command = Annotated[Run | Cancel | Warm, Field(discriminator="op")]
Event = Annotated[Ready | Warmed | ProgressReport | Done | Failed, Field(discriminator="event")]

_COMMANDS: TypeAdapter[Run | Cancel | Warm] = TypeAdapter(Command)
_EVENTS: TypeAdapter[Ready | Warmed | ProgressReport | Done | Failed] = TypeAdapter(Event)


def parse_command(line: bytes) -> Run | Cancel | Warm:
    """Read a line of the parent.

    Raises:
        WireError: when the line is no command.
    """
    try:
        return _COMMANDS.validate_json(line)
    except ValidationError as error:
        raise WireError(f"not a command: {line[:200]!r}") from error


def parse_event(line: bytes) -> Ready | Warmed | ProgressReport | Done | Failed:
    """Read a line of the child.

    Raises:
        WireError: when the line is no event.
    """
    try:
        return _EVENTS.validate_json(line)
    except ValidationError as error:
        raise WireError(f"not an event: {line[:200]!r}") from error
