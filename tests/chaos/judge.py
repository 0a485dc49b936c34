"""What must hold after everything: no job lost, one end each, nothing stale, every result valid."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors.numpy import load

from tests.chaos.arena import LOOK_S
from tests.chaos.callers import ALIKE, LORAS, VARIANTS
from tests.chaos.installation import LEASE_S

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.arena import Arena, Sign
    from tests.chaos.callers import Variant
    from tests.chaos.campaign import Accident

TERMINAL_EVENTS = ("job.succeeded", "job.failed", "job.canceled", "job.expired")
SHOWN = re.compile(r"training_(content|style)_\d{6}")
"""Pictures that are drawn while something is trained."""
IN_PAIRS = """
SELECT count(DISTINCT a.stage_id) FROM stage_attempts a
JOIN stage_attempts b ON b.worker_id = a.worker_id AND b.started_at = a.started_at AND b.stage_id <> a.stage_id
JOIN stages s ON s.id = a.stage_id JOIN stages t ON t.id = b.stage_id AND t.job_id = s.job_id
"""
"""Stages that were ever claimed together with another of their job."""
IN_COMPANY = "SELECT count(DISTINCT stage_id) FROM stage_attempts WHERE jobs > 1"
"""Stages that ever shared their passes with other jobs."""
TRAINED = """
WITH p AS (
    SELECT DISTINCT a.stage_id, a.attempt FROM stage_attempts a
    JOIN stage_attempts b ON b.worker_id = a.worker_id AND b.started_at = a.started_at AND b.stage_id <> a.stage_id
    JOIN stages s ON s.id = a.stage_id JOIN stages t ON t.id = b.stage_id AND t.job_id = s.job_id)
SELECT f.job_id, f.name, f.key, count(*) AS attempts, count(p.stage_id) AS paired, max(a.jobs) AS jobs
FROM artifacts f JOIN stages s ON s.id = f.stage_id JOIN jobs j ON j.id = f.job_id
JOIN stages t ON t.name = s.name AND t.job_id IN (j.id, j.retry_of) JOIN stage_attempts a ON a.stage_id = t.id
LEFT JOIN p ON p.stage_id = a.stage_id AND p.attempt = a.attempt
WHERE f.name = ANY(%s) AND NOT s.stopped_early AND s.reused_job_id IS NULL
GROUP BY f.job_id, f.name, f.key
"""
"""LoRAs that were trained to their end, how many attempts at that, also of the job that this one retries, and beside
how many jobs at most."""
ROUNDING = 1e-2
"""What a pass shared with other jobs may change by the order of its sums, as a share of a LoRA's norm."""

HEARD_S = 2 * LEASE_S
"""A worker that still holds its stage so long after a wish has heard it, and its engine has done the step at hand."""
UNHEEDED = """
SELECT s.job_id, s.name, s.attempt FROM stages s JOIN jobs j ON j.id = s.job_id
JOIN stage_attempts a ON a.stage_id = s.id AND a.attempt = s.attempt
WHERE j.state = 'succeeded' AND j.stop_requested_at IS NOT NULL AND s.name = ANY(%s)
AND NOT s.stopped_early AND s.reused_job_id IS NULL
AND coalesce(a.resumed_step < (s.progress->>'total')::int - 1, true)
AND (s.started_at > j.stop_requested_at
     OR s.started_at + make_interval(secs => (s.timings->>'fetch_s')::float + (s.timings->>'engine_s')::float)
        > j.stop_requested_at + make_interval(secs => %s))
"""
"""Trainings that went on to their last step although their owner had asked for an end; not those about to do it."""
UNSENT = "SELECT count(*) FROM outbox WHERE due_at < now() - interval '5 seconds'"


def recovery_times(accidents: list[Accident], signs: list[Sign]) -> None:
    """Write on every accident how long each stage it hit took to its next attempt, checkpoint or end.

    What was seen at the next look may have happened before the accident, and does not count.
    """
    for accident in accidents:
        for stage in accident.stages:
            later = [sign.at for sign in signs if sign.stage_id == stage and sign.at > accident.at + LOOK_S]
            if later:
                accident.recovery_s.append(min(later) - accident.at)


def judge(arena: Arena) -> dict[str, Any]:
    """Look at every job there is, also at those whose caller never heard that they were accepted."""
    jobs = arena.look.rows("SELECT id, account_id, state, error, retry_of, stop_requested_at FROM jobs")
    problems = {"lost": _lost(arena, jobs), "double_terminal": _double_terminal(arena, jobs)}
    stale, invalid = _artifacts(arena, jobs)
    diverging, twins = _diverging(arena)
    return {
        "jobs": len(jobs),
        "states": dict(Counter(str(job["state"]) for job in jobs)),
        **problems,
        "doubled": _doubled(arena, jobs),
        "stale_artifacts": stale,
        "invalid_results": invalid + diverging,
        "twins_compared": twins,
        "webhooks": _webhooks(arena, jobs),
        "never_accepted": arena.callers.given_up,
        "attempts": dict(
            Counter(
                f"{row['outcome']}" for row in arena.look.rows("SELECT outcome FROM stage_attempts ORDER BY started_at")
            )
        ),
        "resumed_attempts": arena.look.value("SELECT count(*) FROM stage_attempts WHERE resumed_step IS NOT NULL"),
        "reused_stages": arena.look.value("SELECT count(*) FROM stages WHERE reused_job_id IS NOT NULL"),
        "paired_stages": arena.look.value(IN_PAIRS),
        "accompanied_stages": arena.look.value(IN_COMPANY),
        "stopped_early": arena.look.value("SELECT count(*) FROM stages WHERE stopped_early"),
    }


def _lost(arena: Arena, jobs: list[dict[str, Any]]) -> list[str]:
    """Jobs that have not ended, or in a way that nothing they went through allows; and accepted ones without a row."""
    found = []
    rows = {str(job["id"]) for job in jobs}
    for job in jobs:
        order = arena.callers.orders.get(str(job["id"]))
        allowed = {"succeeded"} if order is None else order.allowed
        if job["state"] not in allowed:
            stages = arena.look.rows(
                "SELECT name, state, attempt, failures, failure_counts, error FROM stages WHERE job_id = %s"
                " ORDER BY ordinal",
                (job["id"],),
            )
            found.append(f"job {job['id']} is {job['state']}, not {sorted(allowed)}: {_plain(stages)}")
    found += [f"job {job_id} was accepted and is gone" for job_id in arena.callers.orders if job_id not in rows]
    found += [
        f"job {row['job_id']} was to stop, and {row['name']} did not in attempt {row['attempt']}"
        for row in arena.look.rows(UNHEEDED, (["loras", *LORAS], HEARD_S))
    ]
    if unsent := arena.look.value(UNSENT):
        found.append(f"{unsent} hints were never published")
    return found + arena.unpublished


def _double_terminal(arena: Arena, jobs: list[dict[str, Any]]) -> list[str]:
    """Ended jobs with none, or more than one, event that says so; or with one that says otherwise."""
    ends: dict[str, list[str]] = defaultdict(list)
    for row in arena.look.rows("SELECT job_id, type FROM events WHERE type = ANY(%s)", (list(TERMINAL_EVENTS),)):
        ends[str(row["job_id"])].append(row["type"])
    return arena.flips + [
        f"job {job['id']} is {job['state']} and has {ends[str(job['id'])]}"
        for job in jobs
        if f"job.{job['state']}" in TERMINAL_EVENTS and ends[str(job["id"])] != [f"job.{job['state']}"]
    ]


def _artifacts(arena: Arena, jobs: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Published files of another attempt than the one that succeeded; and results that are missing or broken."""
    stale, invalid = [], []
    names: dict[str, set[str]] = defaultdict(set)
    for row in arena.look.rows(
        "SELECT a.job_id, a.name, a.key, a.sha256, a.bytes, a.attempt, s.name AS stage, s.state, s.attempt AS last,"
        " t.outcome FROM artifacts a JOIN stages s ON s.id = a.stage_id"
        " LEFT JOIN stage_attempts t ON t.stage_id = a.stage_id AND t.attempt = a.attempt"
    ):
        names[str(row["job_id"])].add(row["name"])
        label = f"job {row['job_id']}, {row['name']}"
        right_place = f"/{row['stage']}/{row['attempt']}/" in row["key"]
        if row["outcome"] != "succeeded" or row["attempt"] != row["last"] or not right_place:
            stale.append(f"{label}: attempt {row['attempt']} {row['outcome']}, last {row['last']}, {row['key']}")
        if (complaint := _complaint(arena.installation.objects / row["key"], row)) is not None:
            invalid.append(f"{label}: {complaint}")
    for job in jobs:
        order = arena.callers.orders.get(str(job["id"]))
        if job["state"] == "succeeded" and order is not None:
            invalid += _miscounted(str(job["id"]), names[str(job["id"])], order.variant)
    return stale, invalid


def _miscounted(job_id: str, names: set[str], variant: Variant) -> list[str]:
    """What is missing or too much among the files of a job that succeeded. Those that showed its trainings may be."""
    wrong = names ^ variant.results
    if "preview_every" in variant.wishes:
        wrong = {name for name in wrong if name in variant.results or not SHOWN.fullmatch(name)}
    return [f"job {job_id}, a {variant.kind}, lacks or should not have {sorted(wrong)}"] if wrong else []


def _complaint(path: Path, row: dict[str, Any]) -> str | None:
    """What is wrong with a published file, None if nothing is."""
    if not path.is_file():
        return "not in the store"
    data = path.read_bytes()
    if len(data) != row["bytes"] or hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "other bytes than were recorded"
    if path.suffix == ".safetensors":
        tensors = load(data)
        if not tensors or not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            return "no tensors, or some that are not finite"
    elif path.suffix == ".png":
        with Image.open(BytesIO(data)) as picture:
            picture.load()
    elif path.suffix == ".json":
        json.loads(data)
    return None


def _diverging(arena: Arena) -> tuple[list[str], int]:
    """LoRAs, merges and pictures of one variant that differ although all ran to their end: an accident left a trace.

    Returns them, and how many LoRAs were compared with at least one other.

    A pass over both LoRAs of a job and two passes need not be the same arithmetic: those that were trained in pairs
    throughout are compared among themselves, and those that were now and then are not. Those that were trained beside
    other jobs are compared with the first of their variant, and may differ by `ROUNDING`.
    """
    found: dict[tuple[int, str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    accompanied: list[tuple[int, str, str, Path]] = []
    first: dict[tuple[int, str], Path] = {}
    twins = sorted({name for variant in (*VARIANTS, *ALIKE) for name in variant.twins})
    for row in arena.look.rows(TRAINED, (twins,)):
        order = arena.callers.orders.get(str(row["job_id"]))
        path = arena.installation.objects / row["key"]
        if order is None or row["name"] not in order.variant.twins or not path.is_file():
            continue
        one = first.setdefault((order.variant.number, row["name"]), path)
        if row["jobs"] > 1 and path != one:
            accompanied.append((order.variant.number, row["name"], str(row["job_id"]), path))
        if row["jobs"] > 1 or row["paired"] not in {0, row["attempts"]}:
            continue
        manner = "in pairs" if row["paired"] else "alone"
        found[order.variant.number, row["name"], manner][_digest(path)].append(str(row["job_id"]))
    sizes = [sum(len(jobs) for jobs in kinds.values()) for kinds in found.values()]
    far = [
        f"variant {variant}, {name} of job {job_id} in company: {distance:.1e} away from the first"
        for variant, name, job_id, path in accompanied
        if (distance := _distance(path, first[variant, name])) > ROUNDING
    ]
    return far + [
        f"variant {variant}, {name} {manner}: {len(kinds)} different results: {dict(kinds)}"
        for (variant, name, manner), kinds in found.items()
        if len(kinds) > 1
    ], len(accompanied) + sum(size for size in sizes if size > 1)


def _distance(path: Path, other: Path) -> float:
    """How far the tensors of two files are apart, as a share of the other's norm; infinite if they differ in kind."""
    ours, theirs = load(path.read_bytes()), load(other.read_bytes())
    if {name: tensor.shape for name, tensor in ours.items()} != {name: tensor.shape for name, tensor in theirs.items()}:
        return float("inf")
    apart = sum(
        float(np.square(tensor.astype(float) - theirs[name].astype(float)).sum()) for name, tensor in ours.items()
    )
    whole = sum(float(np.square(tensor.astype(float)).sum()) for tensor in theirs.values())
    return float(np.sqrt(apart / max(whole, 1e-12)))


def _digest(path: Path) -> str:
    """Hash of what a file holds, whatever its header says besides."""
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return hashlib.sha256(picture.tobytes()).hexdigest()[:12]
    whole = hashlib.sha256()
    for name, tensor in sorted(load(path.read_bytes()).items()):
        whole.update(name.encode() + tensor.tobytes())
    return whole.hexdigest()[:12]


def _doubled(arena: Arena, jobs: list[dict[str, Any]]) -> list[str]:
    """Jobs of nobody: an answer was lost, the request came again with its key, and made another one.

    A caller who gave up ordering in the end may have left one.
    """
    paths = [text.partition(": ")[0] for text in arena.callers.given_up]
    forgiven = sum(path == "/jobs" or path.endswith("/retry") for path in paths)
    unknown = [str(job["id"]) for job in jobs if str(job["id"]) not in arena.callers.orders]
    return [f"job {job_id} is nobody's" for job_id in unknown[forgiven:]]


def _webhooks(arena: Arena, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """How the ends were told: to the account's endpoint and to the job's, each under one id."""
    told: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for message in arena.receiver.messages:
        if message.type in TERMINAL_EVENTS:
            told[message.job_id, message.path].add((message.type, message.id))
    wrong = []
    for job in jobs:
        order = arena.callers.orders.get(str(job["id"]))
        if order is None or f"job.{job['state']}" not in TERMINAL_EVENTS:
            continue
        for purpose in ("job", "all"):
            heard = told[order.job_id, f"/{order.account.name}/{purpose}"]
            if [kind for kind, _ in heard] != [f"job.{job['state']}"]:
                wrong.append(f"job {job['id']} is {job['state']}, and {purpose} heard {sorted(heard)}")
    deliveries = arena.look.rows("SELECT state, count(*) AS n FROM webhook_deliveries GROUP BY state")
    return {
        "messages": len(arena.receiver.messages),
        "refused": arena.receiver.refused,
        "forged": arena.receiver.forged,
        "deliveries": {str(row["state"]): row["n"] for row in deliveries},
        "wrong": wrong,
    }


def _plain(value: object) -> str:
    return json.dumps(value, default=str)[:1500]
