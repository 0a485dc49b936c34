"""An engine process without an engine: speaks the protocol, and behaves as it is told.

    stub_engine.py FOLDER '{"content_lora": ["die", "ok"]}'

It builds its lines by hand, standard library only: so it starts in no time, and it checks the protocol from outside.
The list of a stage holds one behaviour for each of its attempts, the last for all that follow; other stages do `ok`.
FOLDER is where it leaves a file `<stage>.<attempt>` with its process id when a run begins, and looks for gates.

    ok            three steps, then the outputs
    gate:NAME     waits at step 1 until FOLDER/NAME exists or it is cancelled, then ok
    deaf          never ends and hears neither cancel nor TERM
    die           kills itself
    fail:FAULT    reports a failure with that fault
    missing       names an output that it did not write
    chatty        like ok, but writes nonsense between its lines
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

LORAS = {
    "content_lora": ("content_lora.safetensors", "content_lora.kohya.safetensors"),
    "style_lora": ("style_lora.safetensors", "style_lora.kohya.safetensors"),
}
OUTPUTS = LORAS | {
    "loras": (*LORAS["content_lora"], *LORAS["style_lora"]),
    "merge": ("merged.diffusers.safetensors", "merged.kohya.safetensors"),
    "package": ("preview.png", "report.json"),
}
STEPS = 3

folder = Path(sys.argv[1])
behaviours = json.loads(sys.argv[2])
cancelled: set[str] = set()
commands: SimpleQueue[dict] = SimpleQueue()


def read() -> None:
    for line in sys.stdin.buffer:
        command = json.loads(line)
        if command["op"] == "cancel":
            cancelled.add(command["id"])
        else:
            commands.put(command)
    os._exit(0)


def say(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def do(run: dict) -> None:
    planned = behaviours.get(run["stage"], ["ok"])
    kind, _, detail = planned[min(run["attempt"], len(planned)) - 1].partition(":")
    (folder / f"{run['stage']}.{run['attempt']}").write_text(str(os.getpid()))
    say("progress", id=run["id"], step=1, total=STEPS, loss=0.5, note=kind)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    if kind == "fail":
        say("failed", id=run["id"], code=f"stub_{detail}", message="as told", fault=detail)
        return
    if kind == "chatty":
        sys.stdout.write('downloading... 100%\n{"event": "party"}\n\n')
        say("progress", id="another:1", step=0, total=0, loss=None, note="")
    while kind == "gate" and not (folder / detail).exists():
        if run["id"] in cancelled:
            say("failed", id=run["id"], code="cancelled", message="stopped on request", fault="cancelled")
            return
        time.sleep(0.01)
    say("progress", id=run["id"], step=STEPS, total=STEPS, loss=0.25, note="")
    say("done", id=run["id"], outputs=write(run, empty=kind == "missing"), timings={"train_s": 0.1})


def write(run: dict, *, empty: bool) -> list[dict[str, str]]:
    inputs = Path(run["inputs_dir"])
    seen = {
        str(path.relative_to(inputs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(inputs.rglob("*"))
        if path.is_file()
    }
    outputs = []
    for filename in OUTPUTS[run["stage"]]:
        if not empty:
            told = {"file": filename, "base": run["base"], "rank": run["config"]["content"]["rank"], "inputs": seen}
            (Path(run["outputs_dir"]) / filename).write_text(json.dumps(told))
        name = filename.partition(".")[0]
        if "kohya" in filename or "diffusers" in filename:
            name = f"{name}_{filename.split('.')[1]}"
        outputs.append({"name": name, "filename": filename, "content_type": "application/octet-stream"})
    return outputs


def main() -> None:
    threading.Thread(target=read, daemon=True).start()
    say("ready", engine_version="stub", device="none")
    while True:
        command = commands.get()
        if command["op"] == "warm":
            say("warmed", base=command["base"], error=None)
        else:
            do(command)


if __name__ == "__main__":
    main()
