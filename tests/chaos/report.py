"""The report: rounds added up, as JSON for machines and as a page for people."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

HAPPENED = (
    "resumed_attempts",
    "reused_stages",
    "paired_stages",
    "accompanied_stages",
    "stopped_early",
    "twins_compared",
)
"""Counts that show that a run was no walk in the park."""

BAD = ("lost", "doubled", "double_terminal", "stale_artifacts", "invalid_results", "orphans", "crashes")
"""Lists of what must not be, in every round's record."""


FORBIDDEN = {
    "lost": "accepted jobs lost, or ended otherwise than their owner asked",
    "doubled": "jobs made twice by one request that was sent again",
    "double_terminal": "ended jobs without exactly one terminal event",
    "stale_artifacts": "published files of a stale attempt",
    "invalid_results": "results missing, broken, not finite, or unlike those of a twin",
    "wrong_webhooks": "ends told to nobody, told under two ids, or unsigned",
    "crashes": "processes that ended by themselves",
    "orphans": "processes left behind",
}


def percentile(values: list[float], share: float) -> float | None:
    """The value below which a share of the values lies, by nearest rank; None without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def add_up(seed: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole run in one document."""
    by_fault: Counter[str] = Counter()
    recovery: dict[str, list[float]] = {}
    for one in rounds:
        by_fault.update(one["by_fault"])
        for name, seconds in one["recovery_s"].items():
            recovery.setdefault(name, []).extend(seconds)
    every = [second for seconds in recovery.values() for second in seconds]
    webhooks = [one["webhooks"] for one in rounds]
    return {
        "seed": seed,
        "commits": sorted({one.get("commit", "unknown") for one in rounds}),
        "jobs": sum(one["jobs"] for one in rounds),
        "faults": sum(one["faults"] for one in rounds),
        **{name: sum(len(one[name]) for one in rounds) for name in BAD},
        "wrong_webhooks": sum(len(one["wrong"]) + one["forged"] for one in webhooks),
        "recovery_p50_s": percentile(every, 0.5),
        "recovery_p95_s": percentile(every, 0.95),
        "recoveries": len(every),
        "seconds": round(sum(one["seconds"] for one in rounds), 1),
        "states": dict(sum((Counter(one["states"]) for one in rounds), Counter())),
        "attempts": dict(sum((Counter(one["attempts"]) for one in rounds), Counter())),
        **{name: sum(one.get(name, 0) for one in rounds) for name in HAPPENED},
        "webhook_messages": sum(one["messages"] for one in webhooks),
        "webhook_refusals": sum(one["refused"] for one in webhooks),
        "by_fault": dict(sorted(by_fault.items())),
        "recovery_by_fault": {
            name: {"p50_s": percentile(seconds, 0.5), "p95_s": percentile(seconds, 0.95), "measured": len(seconds)}
            for name, seconds in sorted(recovery.items())
        },
        "findings": [f"round {place}: {name}: {text}" for place, one in enumerate(rounds) for name, text in _bad(one)],
    }


def passed(report: dict[str, Any]) -> bool:
    """Whether nothing happened that must not."""
    return not any(report[name] for name in (*BAD, "wrong_webhooks"))


def proves(report: dict[str, Any]) -> bool:
    """Whether a long run has shown anything about work that goes on: some did, and some results had a twin."""
    return bool(report["resumed_attempts"] and report["twins_compared"])


def is_clean(one: dict[str, Any]) -> bool:
    """Whether nothing happened in a round that must not."""
    return not _bad(one)


def write(report: dict[str, Any], folder: Path) -> None:
    """Write `report.json` and `REPORT.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "REPORT.md").write_text(_page(report))


def _bad(one: dict[str, Any]) -> list[tuple[str, str]]:
    found = [(name, text) for name in BAD for text in one[name]]
    found += [("webhooks", text) for text in one["webhooks"]["wrong"]]
    if one["webhooks"]["forged"]:
        found.append(("webhooks", f"{one['webhooks']['forged']} requests that no secret of theirs signed"))
    return found


def _page(report: dict[str, Any]) -> str:
    lines = ["# The chaos suite", "", _verdict(report), "", "| what must not be | found |", "| --- | --- |"]
    lines += [f"| {text} | {report[name]} |" for name, text in FORBIDDEN.items()]
    lines += ["", _recovery(report), "", _happened(report), ""]
    lines += ["| fault | times | recovery p50 | p95 |", "| --- | --- | --- | --- |"]
    for name, times in report["by_fault"].items():
        figures = report["recovery_by_fault"].get(name, {})
        lines.append(f"| {name} | {times} | {_s(figures.get('p50_s'))} | {_s(figures.get('p95_s'))} |")
    if report["findings"]:
        lines += ["", "## Findings", "", *(f"- {text}" for text in report["findings"])]
    return "\n".join([*lines, ""])


def _verdict(report: dict[str, Any]) -> str:
    word = "passed" if passed(report) and proves(report) else "FAILED"
    return (
        f"`make chaos` {word}: {report['faults']} faults over {report['jobs']} "
        f"jobs in {report['seconds'] / 60:.0f} minutes on {os.cpu_count()} cores; seed {report['seed']}, commit "
        f"{', '.join(report['commits'])}. The real stack: Postgres with everything durable, Valkey, an S3 server, the "
        "API, two dispatchers, two workers with the real engine on the tiny base; only the recipes are short."
    )


def _recovery(report: dict[str, Any]) -> str:
    return (
        "Recovery, from a fault to the next attempt, checkpoint or end of a stage that it hit: "
        f"p50 {_s(report['recovery_p50_s'])}, p95 {_s(report['recovery_p95_s'])} ({report['recoveries']} measured; "
        "a lease is 4 s here, a retry pauses 2 s or longer, a new engine loads for 6 s or longer, and a stage may "
        "have to wait for a free worker)."
    )


def _happened(report: dict[str, Any]) -> str:
    return (
        f"Jobs: {_counts(report['states'])}. Attempts: {_counts(report['attempts'])}; {report['resumed_attempts']} "
        f"began from a checkpoint, {report['reused_stages']} stages came from the library, {report['paired_stages']} "
        f"were trained in pairs, {report['accompanied_stages']} beside those of other jobs, "
        f"{report['stopped_early']} stopped early, {report['twins_compared']} LoRAs were "
        "compared with a twin. "
        f"Webhooks: {report['webhook_messages']} taken, {report['webhook_refusals']} turned away first."
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items(), key=lambda item: -item[1]))


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
