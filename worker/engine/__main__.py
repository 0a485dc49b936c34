"""`python -m worker.engine`: loads the engine, then does what the parent says, one stage after another."""

from __future__ import annotations

import logging
import os
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from pydantic import ValidationError

from duolora.config import PersonalizeConfig
from duolora.errors import DuoLoraError, Fault, InvalidConfig
from worker import logs
from worker.engine.channel import Channel, PipeObserver
from worker.engine.protocol import StageRequest
from worker.wire import Done, Failed, OutputFile, Ready, Run, Warm, Warmed

if TYPE_CHECKING:
    from worker.engine.stages import BaseModels

log = logging.getLogger("worker.engine")


def main() -> None:
    """Take commands until the parent closes the pipe."""
    channel = Channel()
    logs.configure(os.environ.get("LOG_LEVEL", "INFO"))
    # The pipe is claimed before the libraries load, because some print while they do.
    from worker.engine.stages import BaseModels  # noqa: PLC0415

    models = BaseModels()
    channel.send(Ready(engine_version=version("duolora"), device=models.device))
    channel.start()
    while True:
        match channel.next_command():
            case Warm(base=base):
                channel.send(_warm(models, base))
            case Run() as command:
                with logs.bound(
                    job=command.job_id, stage=command.stage, attempt=command.attempt, traceparent=command.traceparent
                ):
                    channel.send(_run(models, command, channel))


def _warm(models: BaseModels, base: str) -> Warmed:
    """Load a base. No error ends the process: started anew, it would meet the same base, for ever."""
    try:
        models.warm(base)
    except DuoLoraError as error:
        return Warmed(base=base, error=f"{error.code}: {error}")
    except Exception as error:
        log.exception("loading base %s failed for a reason nobody foresaw", base)
        return Warmed(base=base, error=f"internal_error: an unexpected {type(error).__name__}; see the logs")
    return Warmed(base=base)


def _run(models: BaseModels, command: Run, channel: Channel) -> Done | Failed:
    """Run one stage. An error that the engine does not name ends the process, after telling the parent why."""
    from worker.engine.stages import run_stage  # noqa: PLC0415 - loaded by main

    started = perf_counter()
    try:
        outputs = run_stage(_request(command), models, PipeObserver(channel, command.id))
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
        outputs=tuple(
            OutputFile(name=output.name, filename=output.filename, content_type=output.content_type)
            for output in outputs
        ),
        timings={"run_s": round(perf_counter() - started, 3)},
    )


def _request(command: Run) -> StageRequest:
    try:
        config = PersonalizeConfig.model_validate(command.config)
    except ValidationError as error:
        raise InvalidConfig(f"the stored configuration cannot be read: {error.error_count()} fields") from error
    return StageRequest(
        stage=command.stage,
        base=command.base,
        config=config,
        inputs_dir=Path(command.inputs_dir),
        outputs_dir=Path(command.outputs_dir),
        checkpoints_dir=Path(command.checkpoints_dir),
        resume_dir=None if command.resume_dir is None else Path(command.resume_dir),
        attempt=command.attempt,
    )


if __name__ == "__main__":
    main()
