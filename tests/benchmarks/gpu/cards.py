"""Several cards of one host: a job on each at the same time, and one job's two LoRAs on two cards.

Workers share nothing but the database, the broker and the store, so that what cards cost each other is what they share
of the host: its cores, its memory's bandwidth, its power. That is measured here: an engine process on every card.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from duolora.runtime import choose_runtime
from duolora.train import train_loras
from tests.benchmarks.gpu.many_jobs import after_training_s
from tests.benchmarks.gpu.ours import SIDES
from tests.benchmarks.gpu.own_process import print_row, rows_of
from tests.benchmarks.gpu.timing import Stamps, measured
from tests.benchmarks.gpu.workbench import FULL, TINY, Findings, Workbench

MODULE = "tests.benchmarks.gpu.cards"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def measure(bench: Workbench) -> Findings:
    """Time a job on one card, one on each, and one parted over two; about 60 s each on H100s."""
    for side in SIDES:
        bench.pictures(side)
    bench.drop_base()  # the processes need the card
    count = max(1, torch.cuda.device_count()) if not bench.is_small else 2
    rows = [_at_once(bench, cards) for cards in sorted({1, min(2, count), count})]
    hourly = {row["cards"]: row["jobs_per_hour"] for row in rows if "jobs_per_hour" in row}
    if count > 1:
        rows.append(_parted(bench))
    note = "A job is that of `many_jobs`. Parted: each side trains on a card of its own, then one of them goes on."
    return Findings({"jobs_per_hour_by_cards": hourly} if hourly else {}, rows, note)


def _at_once(bench: Workbench, cards: int) -> dict[str, Any]:
    """Run a job on each of some cards."""
    found = _rows(bench, [",".join(SIDES)] * cards)
    row: dict[str, Any] = {"cards": cards, "what": "a job on each"}
    failed = [each for each in found if each["result"] != "ok"]
    if failed:
        return row | failed[0]
    job_s = [each["train_s"] + each["after_s"] for each in found]
    return row | {"result": "ok", "job_s": max(job_s), "jobs_per_hour": sum(3600 / each for each in job_s)}


def _parted(bench: Workbench) -> dict[str, Any]:
    """Run one job whose sides train on two cards."""
    found = _rows(bench, SIDES)
    row: dict[str, Any] = {"cards": len(SIDES), "what": "one job, parted"}
    failed = [each for each in found if each["result"] != "ok"]
    if failed:
        return row | failed[0]
    job_s = max(each["train_s"] for each in found) + min(each["after_s"] for each in found)
    return row | {"result": "ok", "job_s": job_s, "jobs_per_hour": 3600 / job_s}


def _rows(bench: Workbench, sides: list[str] | tuple[str, ...]) -> list[dict[str, Any]]:
    """Start a process on each card, the first with the first sides and so on."""
    common = ["--folder", str(bench.folder.resolve()), *(["--small"] if bench.is_small else [])]
    return rows_of(
        MODULE,
        [["--sides", each, *common] for each in sides],
        [{VISIBLE: str(card)} for card in range(len(sides))],
    )


def job(bench: Workbench, sides: list[str]) -> dict[str, Any]:
    """Train some sides for a while, merge and draw; return what a whole training and the rest of a job take."""
    scale = bench.scale
    bench.base()
    after_s = after_training_s(bench)
    stamps = Stamps(bench.device, "training", scale.stamp_every, scale.stamp_skip)
    with measured(bench.device) as region:
        train_loras(bench.base(), [bench.task(side, steps=scale.tenant_steps) for side in sides], stamps)
    start_s = max(0.0, region.seconds - scale.tenant_steps * stamps.step_s())
    train_s = start_s + scale.job_steps * stamps.step_s()
    return {"result": "ok", "train_s": train_s, "after_s": after_s}


def main() -> None:
    """Be the engine of one card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    runtime = choose_runtime("cpu" if arguments.small else "auto")
    print_row(job(Workbench(TINY if arguments.small else FULL, runtime, arguments.folder), arguments.sides.split(",")))


if __name__ == "__main__":
    main()
