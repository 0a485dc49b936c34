"""The lines that a worker and its engine process exchange: one JSON object a line, both directions. Torch-free.

Parent to child (stdin): `run`, `cancel`, `pause`, `finish`, `warm`; the end of the stream means exit.
Child to parent (the child's original stdout): `ready`, `warmed`, `progress`, `checkpointed`, `log`, `shown`,
`done`, `failed`.
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


class Member(_Message):
    """One stage of a run. Answers name it by its place among the members."""

    job_id: str
    stage: str
    attempt: int
    config: dict[str, Any]
    inputs_dir: str
    """Of the job: its stages may have the same one."""
    outputs_dir: str
    checkpoints_dir: str
    """Empty folder for checkpoints, each in a folder of its own."""
    resume_dir: str | None = None
    """Folder with the files of the checkpoint to go on from, as they were written."""


class Run(_Message):
    """Run one stage, or several trainings that share every pass of the U-Net. `id` names the attempt in every answer.

    The stages of one job stand next to each other.
    """

    op: Literal["run"] = "run"
    id: str
    members: tuple[Member, ...] = Field(min_length=1)
    base: str
    """Location of the base model: a folder, a hub id, a single file, or the name of an embedded one."""
    checkpoint_every_s: float = 20.0
    finish_early: bool = False
    """As if `finish` came with it: go on from the checkpoint to the next step, and end there."""
    memory_profile: Literal["full", "small"] = "full"
    traceparent: str | None = None
    tracestate: str | None = None
    request_id: str | None = None
    """Of the request that made the first job: for log lines, like the one before."""

    @property
    def jobs(self) -> list[str]:
        """The ids of its jobs, in the order of the members."""
        return list(dict.fromkeys(member.job_id for member in self.members))


class Cancel(_Message):
    """Stop the run `id` at its next step; ignored when it is not running."""

    op: Literal["cancel"] = "cancel"
    id: str


class Pause(_Message):
    """Write a checkpoint of the run `id` if it can have one, then stop as for `cancel`."""

    op: Literal["pause"] = "pause"
    id: str


class Finish(_Message):
    """End the run `id` at its next step, well, with what it has by then."""

    op: Literal["finish"] = "finish"
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
    free_bytes: int | None = None
    """Memory of the device that nobody uses; None where the device does not say."""


class Warmed(_Message):
    """The child answers `warm`; `error` says why the base could not be loaded."""

    event: Literal["warmed"] = "warmed"
    base: str
    error: str | None = None
    revision: str | None = None
    """Changes whenever the base's files do; None if nobody can tell."""
    held_bytes: int | None = None
    """Memory that the process holds with nothing but the base loaded; compare it with that of `done`."""
    pairs: bool = True
    """Whether the engine trains two LoRAs in one pass with advantage: its memory profile decides."""
    shares_passes: bool = False
    """Whether it trains LoRAs of several jobs in one pass."""


class ProgressReport(_Message):
    """One report of the running stage (duolora.events.Progress)."""

    event: Literal["progress"] = "progress"
    id: str
    step: int
    total: int
    loss: float | None = None
    note: str = ""
    losses: tuple[float, ...] = ()
    """Of every job, in their order, where the run has several; `loss` is the mean."""


class CheckpointFile(_Message):
    """One file of a checkpoint."""

    name: str
    sha256: str
    bytes: int


class Checkpointed(_Message):
    """A checkpoint is complete on disk: `folder`, inside `checkpoints_dir`, is the parent's from now on."""

    event: Literal["checkpointed"] = "checkpointed"
    id: str
    member: int = 0
    """Whose it is."""
    step: int
    total: int
    folder: str
    paired: bool = False
    """Written in a pass that two stages of a job shared; to go on bit for bit, they must share it again."""
    files: tuple[CheckpointFile, ...]


class LogLine(_Message):
    """Something that the job's owner may read about the run."""

    event: Literal["log"] = "log"
    id: str
    level: str
    message: str


class OutputFile(_Message):
    """One file that a stage left in its outputs folder."""

    name: str
    filename: str
    content_type: str
    member: int = 0
    """Whose it is."""


class Shown(_Message):
    """An output is complete before its stage is: its owner may look at it. `done` names it again."""

    event: Literal["shown"] = "shown"
    id: str
    output: OutputFile


class Done(_Message):
    """The stage is finished; its files are complete on disk. Timings are seconds by name."""

    event: Literal["done"] = "done"
    id: str
    outputs: tuple[OutputFile, ...]
    timings: dict[str, float] = {}
    finished_early: bool = False
    """It ended at the request of `finish` and has taken fewer steps than it was configured for."""
    held_bytes: int | None = None
    peak_bytes: int | None = None
    """The most memory that it took: of the GPU, or of the whole process where there is none."""


class Failed(_Message):
    """The stage could not be done."""

    event: Literal["failed"] = "failed"
    id: str
    code: str
    message: str
    fault: Fault
    held_bytes: int | None = None


Command = Run | Cancel | Pause | Finish | Warm
Event = Ready | Warmed | ProgressReport | Checkpointed | LogLine | Shown | Done | Failed

_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="op")])
_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse_command(line: bytes) -> Command:
    """Read a line of the parent.

    Raises:
        WireError: when the line is no command.
    """
    try:
        return _COMMANDS.validate_json(line)
    except ValidationError as error:
        raise WireError(f"not a command: {line[:200]!r}") from error


def parse_event(line: bytes) -> Event:
    """Read a line of the child.

    Raises:
        WireError: when the line is no event.
    """
    try:
        return _EVENTS.validate_json(line)
    except ValidationError as error:
        raise WireError(f"not an event: {line[:200]!r}") from error
