"""`python -m worker.engine`: loads the engine, then does what the parent says, one stage after another."""

from __future__ import annotations

import logging
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from pydantic import ValidationError

from duolora.errors import DuoLoraError, Fault, InvalidConfig
from duolora.job_configs import read_config
from duolora.models.revision import base_revision
from worker import logs
from worker.engine.channel import Channel, PipeObserver
from worker.engine.keeping import PipeKeeper, places_of
from worker.engine.lines import PipeLines
from worker.engine.memory import PeakMemory, free_bytes, held_bytes
from worker.engine.protocol import StageOfJob, StageRequest
from worker.wire import Done, Failed, OutputFile, Ready, Run, Shown, Warm, Warmed

if TYPE_CHECKING:
    from duolora.job_configs import JobConfig
    from worker.engine.protocol import Output
    from worker.engine.stages import BaseModels
    from worker.wire import Member

log = logging.getLogger("worker.engine")


def main() -> None:
    """Take commands until the parent closes the pipe or ends the process by TERM, which pauses a run first."""
    channel = Channel()
    logs.configure(os.environ.get("LOG_LEVEL", "INFO"))
    lines = PipeLines(channel)
    lines.install()
    # The pipe is claimed before the libraries load, because some print while they do.
    from worker.engine.stages import BaseModels  # noqa: PLC0415

    models = BaseModels()
    signal.signal(signal.SIGTERM, lambda *_: channel.terminate())
    channel.send(Ready(engine_version=version("duolora"), device=models.device, free_bytes=free_bytes(models.device)))
    channel.start()
    while (command := channel.next_command()) is not None:
        if isinstance(command, Warm):
            channel.send(_warm(models, command.base))
            continue
        first = command.members[0]
        origin = {
            "traceparent": command.traceparent,
            "tracestate": command.tracestate,
            "request_id": command.request_id,
        }
        with (
            logs.bound(job=first.job_id, stage=first.stage, attempt=first.attempt, **origin),
            lines.bound(command.id),
        ):
            answer = _run(models, command, channel)
        channel.send(answer.model_copy(update={"held_bytes": held_bytes()}))
    sys.stderr.flush()
    os._exit(0)  # the thread that reads commands cannot be joined: it waits for the parent


def _warm(models: BaseModels, base: str) -> Warmed:
    """Load a base. No error ends the process: started anew, it would meet the same base, for ever."""
    try:
        models.warm(base)
    except DuoLoraError as error:
        return Warmed(base=base, error=f"{error.code}: {error}")
    except Exception as error:
        log.exception("loading base %s failed for a reason nobody foresaw", base)
        return Warmed(base=base, error=f"internal_error: an unexpected {type(error).__name__}; see the logs")
    return Warmed(
        base=base,
        revision=base_revision(base),
        held_bytes=held_bytes(),
        pairs=models.pairs(base),
        shares_passes=models.shares_passes(base),
    )


def _run(models: BaseModels, command: Run, channel: Channel) -> Done | Failed:
    """Do a run. An error that the engine does not name ends the process, after telling the parent why."""
    from worker.engine.stages import run_stage  # noqa: PLC0415 - loaded by main

    started, memory = perf_counter(), PeakMemory()
    keeper = PipeKeeper(channel, command, places_of(command, base_revision(command.base)))
    try:
        outputs = run_stage(_request(command, keeper, channel), models, PipeObserver(channel, command.id))
    except DuoLoraError as error:
        return Failed(id=command.id, code=error.code, message=str(error), fault=error.fault)
    except Exception as error:
        channel.send(
            Failed(
                id=command.id,
                code="internal_error",
                message=f"an unexpected {type(error).__name__}; see the logs",
                fault=Fault.INFRASTRUCTURE,
            )
        )
        raise
    return Done(
        id=command.id,
        outputs=tuple(map(_file, outputs)),
        timings={"run_s": round(perf_counter() - started, 3)},
        finished_early=keeper.finished_early,
        peak_bytes=memory.peak_bytes(),
    )


def _file(output: Output) -> OutputFile:
    return OutputFile(
        name=output.name, filename=output.filename, content_type=output.content_type, member=output.member
    )


def _request(command: Run, keeper: PipeKeeper, channel: Channel) -> StageRequest:
    return StageRequest(
        base=command.base,
        members=tuple(
            StageOfJob(
                job=member.job_id,
                stage=member.stage,
                config=_config(member),
                inputs_dir=Path(member.inputs_dir),
                outputs_dir=Path(member.outputs_dir),
            )
            for member in command.members
        ),
        keeper=keeper,
        spares_memory=command.memory_profile == "small",
        shows=lambda output: channel.send(Shown(id=command.id, output=_file(output))),
    )


def _config(member: Member) -> JobConfig:
    try:
        return read_config(member.config)
    except ValidationError as error:
        raise InvalidConfig(f"the stored configuration cannot be read: {error.error_count()} fields") from error


if __name__ == "__main__":
    main()
