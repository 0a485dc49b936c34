"""An engine process without an engine: speaks the protocol, and behaves as it is told.

    stub_engine.py FOLDER '{"content_lora": ["die", "ok"]}'

It builds its lines by hand, standard library only: so it starts in no time, and it checks the protocol from outside.
The list of a stage holds one behaviour for each of its attempts, the last for all that follow; other stages do `ok`.
Of several members the one whose stage comes first by name decides, unless there is a list under the id of a job.
FOLDER is where it leaves a file `<stage>.<attempt>` with its process id when a run begins, and looks for gates.

    ok            three steps, then the outputs
    gate:NAME     waits at step 1 until FOLDER/NAME exists or it is cancelled, then ok
    deaf          never ends and hears neither cancel nor TERM
    die           kills itself
    fail:FAULT    reports a failure with that fault
    missing       names an output that it did not write
    chatty        like ok, but writes nonsense between its lines
    train:N       N steps of 20 ms with checkpoints, from a checkpoint if it gets one; hears pause and finish
    train:N:K     the same, but kills itself at step K
    hang:N:K      the same, but makes no more steps from step K on
    refuse:N      the same, but cannot read any checkpoint
    grow:BYTES    like ok, and holds so much more memory from then on
    talk:N        like ok, with N lines for the log
    show:NAME     like gate, but shows a picture before it waits, and another when it is told to stop

Other keys that are no stages: `revision` of its base, `free_bytes` of its device at each start, `pairs` and
`shares_passes` of its memory profile, and `always`, the behaviour of all stages that have none of their own.
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
STEP_S = 0.02
HELD_BYTES = 1_000_000

folder = Path(sys.argv[1])
behaviours = json.loads(sys.argv[2])
asked: dict[str, set[str]] = {"cancel": set(), "pause": set(), "finish": set()}
commands: SimpleQueue[dict] = SimpleQueue()
held = {"bytes": HELD_BYTES}


def read() -> None:
    for line in sys.stdin.buffer:
        command = json.loads(line)
        if command["op"] in asked:
            asked[command["op"]].add(command["id"])
        else:
            commands.put(command)
    os._exit(0)


def say(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def do(run: dict) -> None:
    first = min(run["members"], key=lambda each: each["stage"])
    member = next((each for each in run["members"] if each["job_id"] in behaviours), first)
    planned = behaviours.get(member["job_id"], behaviours.get(member["stage"], behaviours.get("always", ["ok"])))
    kind, _, detail = planned[min(member["attempt"], len(planned)) - 1].partition(":")
    (folder / f"{member['stage']}.{member['attempt']}").write_text(str(os.getpid()))
    if kind in {"train", "hang", "refuse"}:
        train(run, kind, [int(number) for number in detail.split(":")])
        return
    say("progress", id=run["id"], step=1, total=STEPS, loss=0.5, note=kind)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    if kind == "fail":
        fail(run, f"stub_{detail}", detail)
        return
    if kind == "chatty":
        sys.stdout.write('downloading... 100%\n{"event": "party"}\n\n')
        say("progress", id="another:1", step=0, total=0, loss=None, note="")
    if kind == "grow":
        held["bytes"] += int(detail)
    for number in range(int(detail) if kind == "talk" else 0):
        say("log", id=run["id"], level="INFO", message=f"line {number}")
    if kind in {"gate", "show"} and not passes(run, member, kind, folder / detail):
        fail(run, "cancelled", "cancelled")
        return
    say("progress", id=run["id"], step=STEPS, total=STEPS, loss=0.25, note="")
    end(run, {"missing": kind == "missing"})


def show(run: dict, member: dict, name: str) -> None:
    (Path(member["outputs_dir"]) / f"{name}.png").write_text(name)
    say("shown", id=run["id"], output={"name": name, "filename": f"{name}.png", "content_type": "image/png"})


def passes(run: dict, member: dict, kind: str, gate: Path) -> bool:
    """Wait for a gate; False if told to stop first."""
    shows = kind == "show"
    if shows:
        show(run, member, "first")
    while not gate.exists():
        if run["id"] in asked["cancel"] | asked["pause"]:
            if shows:
                show(run, member, "last")
            return False
        time.sleep(0.01)
    return True


def train(run: dict, kind: str, numbers: list[int]) -> None:
    """Count up to `numbers[0]`; what was counted in which attempt is the state, and the result."""
    total, at = numbers[0], numbers[1] if len(numbers) > 1 else None
    members = run["members"]
    counted: list[int] = []
    if members[0]["resume_dir"] is not None:
        if kind == "refuse":
            fail(run, "checkpoint_unusable", "infrastructure")
            return
        states = [json.loads((Path(each["resume_dir"]) / "state.json").read_text()) for each in members]
        assert all(len(state) == len(states[0]) for state in states)
        counted = states[0]
    kept_at = time.monotonic()
    while len(counted) < total:
        if kind == "hang" and len(counted) + 1 == at:
            say("progress", id=run["id"], step=len(counted), total=total, loss=0.5, note="training")
            time.sleep(STEP_S)
            continue
        if kind == "train" and len(counted) + 1 == at:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(STEP_S)
        counted.append(members[0]["attempt"])
        loss, jobs = 1 / len(counted), len({each["job_id"] for each in members})
        losses = [loss + job for job in range(jobs)] if jobs > 1 else []
        say("progress", id=run["id"], step=len(counted), total=total, loss=loss, losses=losses, note="training")
        finishing = run["finish_early"] or run["id"] in asked["finish"]
        paused = run["id"] in asked["pause"]
        due = time.monotonic() >= kept_at + run["checkpoint_every_s"]
        if due or paused or finishing or len(counted) == total:
            kept_at = time.monotonic()
            keep(run, counted, total)
        if paused or run["id"] in asked["cancel"]:
            fail(run, "cancelled", "cancelled")
            return
        if finishing:
            break
    end(
        run,
        {"counted": counted, "profile": run["memory_profile"]},
        early=len(counted) < total,
    )


def keep(run: dict, counted: list[int], total: int) -> None:
    jobs = [each["job_id"] for each in run["members"]]
    for number, member in enumerate(run["members"]):
        target = Path(member["checkpoints_dir"]) / str(len(counted))
        target.mkdir()
        data = json.dumps(counted).encode()
        (target / "state.json").write_bytes(data)
        file = {"name": "state.json", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        paired = jobs.count(member["job_id"]) > 1
        place = {"step": len(counted), "total": total, "folder": str(target), "paired": paired}
        say("checkpointed", id=run["id"], member=number, files=[file], **place)


def fail(run: dict, code: str, fault: str) -> None:
    say("failed", id=run["id"], code=code, message="as told", fault=fault)


def end(run: dict, told: dict[str, object], *, early: bool = False) -> None:
    told |= {"alone": len(run["members"]) == 1, "jobs": len({each["job_id"] for each in run["members"]})}
    outputs = [
        output | {"member": number}
        for number, member in enumerate(run["members"])
        for output in write(run, member, told)
    ]
    timings = {"train_s": 0.1}
    say("done", id=run["id"], outputs=outputs, timings=timings, finished_early=early, held_bytes=held["bytes"])


def write(run: dict, member: dict, told: dict[str, object]) -> list[dict[str, str]]:
    inputs = Path(member["inputs_dir"])
    seen = {
        str(path.relative_to(inputs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(inputs.rglob("*"))
        if path.is_file()
    }
    outputs = []
    for filename in OUTPUTS[member["stage"]]:
        if not told.get("missing"):
            rank = member["config"]["content"]["rank"]
            result = {"file": filename, "base": run["base"], "rank": rank, "inputs": seen, **told}
            (Path(member["outputs_dir"]) / filename).write_text(json.dumps(result))
        name = filename.partition(".")[0]
        if "kohya" in filename or "diffusers" in filename:
            name = f"{name}_{filename.split('.')[1]}"
        outputs.append({"name": name, "filename": filename, "content_type": "application/octet-stream"})
    return outputs


def free_bytes() -> int | None:
    """What the device has left at this start; each start leaves a mark."""
    planned = behaviours.get("free_bytes")
    if planned is None:
        return None
    starts = len(list(folder.glob("start.*")))
    (folder / f"start.{starts}").touch()
    return planned[min(starts, len(planned) - 1)]


def main() -> None:
    threading.Thread(target=read, daemon=True).start()
    say("ready", engine_version="stub", device="none", free_bytes=free_bytes())
    while True:
        command = commands.get()
        if command["op"] == "warm":
            revision = behaviours.get("revision")
            told = {"revision": revision, "held_bytes": held["bytes"]}
            told |= {name: behaviours.get(name, True) for name in ("pairs", "shares_passes")}
            say("warmed", base=command["base"], error=None, **told)
        else:
            do(command)


if __name__ == "__main__":
    main()
