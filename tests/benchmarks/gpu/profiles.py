"""The short job on cards of several sizes: a fresh process for each, in which torch may take that much and no more.

The limit is on torch's allocator: what the driver and the libraries take beside it, about half a GiB, comes on top, so
that a card of a size has that much less for the job.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from duolora.errors import OutOfMemory
from duolora.generate import generate
from duolora.merge import merge_loras
from duolora.recipes import MERGE_RECIPES
from duolora.runtime import choose_runtime
from duolora.train import train_loras
from tests.benchmarks.gpu.ours import SIDES, merge_sides, reserved_gib
from tests.benchmarks.gpu.own_process import print_row, rows_of
from tests.benchmarks.gpu.timing import GIB, Stamps, measured
from tests.benchmarks.gpu.workbench import FULL, OUT_OF_MEMORY, TINY, Findings, Workbench, random_lora

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODULE = "tests.benchmarks.gpu.profiles"


def settings_of(profile_gib: int) -> dict[str, str]:
    """Return the words by which the engine's runtime is chosen on a card of a size: the profile of its name."""
    return {"memory": f"{profile_gib}gb"}


def measure(bench: Workbench) -> Findings:
    """Run the short job on every size of card; about 30 s each on an H100, sparing ones 50 s, the start
    of the process included.
    """
    for side in SIDES:
        bench.pictures(side)
    bench.drop_base()  # the processes need the card
    rows = [_in_process(bench, profile_gib) for profile_gib in bench.scale.profiles_gib]
    peaks = {row["profile_gib"]: row["peak_gib"] for row in rows if row.get("result") == "ok"}
    figures = {"peak_gib_by_profile": peaks} if peaks else {}
    return Findings(figures, rows, "Peaks are of torch's tensors; reserved is what its allocator took for them.")


def _in_process(bench: Workbench, profile_gib: int) -> dict[str, Any]:
    """Run one size of card in a process of its own."""
    words = ["--gib", str(profile_gib), "--folder", str(bench.folder.resolve())]
    words += ["--small"] if bench.is_small else []
    return {"profile_gib": profile_gib, **settings_of(profile_gib), **rows_of(MODULE, [words])[0]}


def short_job(bench: Workbench) -> dict[str, Any]:
    """Train both LoRAs a few steps, merge with a few steps, draw one picture; say how far the memory reached."""
    row: dict[str, Any] = {"result": "ok", "out_of_memory_in": None}
    began = time.perf_counter()
    for stage, work in STAGES.items():
        try:
            with measured(bench.device) as region:
                row |= work(bench)
        except (OutOfMemory, torch.cuda.OutOfMemoryError):
            row |= {"result": OUT_OF_MEMORY, "out_of_memory_in": stage}
        row[f"{stage}_peak_gib"] = region.peak_gib
        if row["result"] != "ok":
            break
    peak_gib = max(value for name, value in row.items() if name.endswith("_peak_gib"))
    row |= {"peak_gib": peak_gib, "reserved_gib": reserved_gib(bench.device), "seconds": time.perf_counter() - began}
    return row


def _base(bench: Workbench) -> dict[str, Any]:
    """Make the base on the card."""
    bench.base()
    return {}


def _train(bench: Workbench) -> dict[str, Any]:
    """Train both LoRAs, in one pass where the profile says that it is worth while; the time is of all passes."""
    tasks = [bench.task(side, steps=bench.scale.profile_steps) for side in SIDES]
    step_s = 0.0
    for together in [tasks] if bench.base().memory.pairs else [[task] for task in tasks]:
        stamps = Stamps(bench.device, "training", 1, min(3, bench.scale.stamp_skip))
        train_loras(bench.base(), together, stamps)
        step_s += stamps.step_s()
    return {"train_s_per_step": step_s}


def _merge(bench: Workbench) -> dict[str, Any]:
    """Merge two LoRAs with steps and cycles, as the paper does."""
    loras = {side: random_lora(bench.base(), bench.scale.rank, seed) for seed, side in enumerate(SIDES)}
    config = MERGE_RECIPES["paper"].model_copy(update={"steps": bench.scale.profile_steps, "bank_size": 2})
    stamps = Stamps(bench.device, "merging", 1, min(3, bench.scale.stamp_skip))
    merge_loras(
        bench.base(),
        merge_sides(bench, loras),
        bench.job().prompts.joint,
        config,
        resolution_px=bench.scale.resolution_px,
        observer=stamps,
    )
    return {"merge_s_per_step": stamps.step_s()}


def _preview(bench: Workbench) -> dict[str, Any]:
    """Draw one picture with a LoRA of the rank that a merged one has."""
    lora, job = random_lora(bench.base(), 2 * bench.scale.rank, seed=2), bench.job()
    config = job.preview.model_copy(update={"images": 1, "steps": bench.scale.profile_steps})
    generate(bench.base(), [job.prompts.joint], config, lora)
    return {}


STAGES: Mapping[str, Callable[[Workbench], dict[str, Any]]] = {
    "base": _base,
    "train": _train,
    "merge": _merge,
    "preview": _preview,
}
"""What a short job does, in order."""


def main() -> None:
    """Be one card of a size: run the short job and print its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device = "cpu" if arguments.small else "auto"
    runtime = choose_runtime(device, **settings_of(arguments.gib))
    if runtime.device.type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.gib * GIB / total))
    bench = Workbench(TINY if arguments.small else FULL, runtime, arguments.folder)
    print_row(short_job(bench))


if __name__ == "__main__":
    main()
