"""An engine process without an engine: speaks the real protocol, and behaves as it is told.

    python -m tests.worker.stub_engine FOLDER '{"content_lora": ["die", "ok"]}'

The list of a stage holds one behaviour for each of its attempts, the last for all that follow; other stages do `ok`.
FOLDER is where it leaves a file `<stage>.<attempt>` with its process id when a run begins, and looks for gates.

    ok            three steps, then the outputs
    gate:NAME     waits at step 1 until FOLDER/NAME exists or it is cancelled, then ok
    deaf          never ends and hears neither cancel nor TERM
    die           kills itself
    fail:FAULT    reports a failure with that fault
    missing       names an output that it did not write
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from duolora.errors import Fault
from worker.wire import Cancel, Done, Failed, OutputFile, ProgressReport, Ready, Run, Warm, Warmed, parse_command

OUTPUTS = {
    "content_lora": ("content_lora.safetensors", "content_lora.kohya.safetensors"),
    "style_lora": ("style_lora.safetensors", "style_lora.kohya.safetensors"),
    "merge": ("merged.diffusers.safetensors", "merged.kohya.safetensors"),
    "package": ("preview.png", "report.json"),
}
STEPS = 3

folder = Path(sys.argv[1])
behaviours = json.loads(sys.argv[2])
cancelled: set[str] = set()
commands: SimpleQueue[Run | Warm | None] = SimpleQueue()


def read() -> None:
    for line in sys.stdin.buffer:
        command = parse_command(line)
        if isinstance(command, Cancel):
            cancelled.add(command.id)
        else:
            commands.put(command)
    os._exit(0)


def say(event: Ready | Warmed | ProgressReport | Done | Failed) -> None:
    sys.stdout.buffer.write(event.line())
    sys.stdout.buffer.flush()


def behaviour(run: Run) -> str:
    planned = behaviours.get(run.stage, ["ok"])
    return planned[min(run.attempt, len(planned)) - 1]


def do(run: Run) -> Done | Failed:
    (folder / f"{run.stage}.{run.attempt}").write_text(str(os.getpid()))
    kind, _, detail = behaviour(run).partition(":")
    say(ProgressReport(id=run.id, step=1, total=STEPS, loss=0.5, note=kind))
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    if kind == "fail":
        return Failed(id=run.id, code=f"stub_{detail}", message="as told", fault=Fault(detail))
    while kind == "gate" and not (folder / detail).exists():
        if run.id in cancelled:
            return Failed(id=run.id, code="cancelled", message="stopped on request", fault=Fault.CANCELLED)
        time.sleep(0.01)
    say(ProgressReport(id=run.id, step=STEPS, total=STEPS, loss=0.25))
    return Done(id=run.id, outputs=tuple(write(run, empty=kind == "missing")), timings={"train_s": 0.1})


def write(run: Run, *, empty: bool) -> list[OutputFile]:
    inputs = Path(run.inputs_dir)
    seen = {
        str(path.relative_to(inputs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(inputs.rglob("*"))
        if path.is_file()
    }
    outputs = []
    for filename in OUTPUTS[run.stage]:
        if not empty:
            told = {"file": filename, "base": run.base, "rank": run.config["content"]["rank"], "inputs": seen}
            (Path(run.outputs_dir) / filename).write_text(json.dumps(told))
        name = filename.partition(".")[0]
        if "kohya" in filename or "diffusers" in filename:
            name = f"{name}_{filename.split('.')[1]}"
        outputs.append(OutputFile(name=name, filename=filename, content_type="application/octet-stream"))
    return outputs


def main() -> None:
    threading.Thread(target=read, daemon=True).start()
    say(Ready(engine_version="stub", device="none"))
    while (command := commands.get()) is not None:
        if isinstance(command, Warm):
            say(Warmed(base=command.base))
        else:
            say(do(command))


if __name__ == "__main__":
    main()
