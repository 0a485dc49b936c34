"""The whole job in a warm process: both LoRAs, the merge by two recipes, the previews of the merged LoRA.

What a worker does around it is left out: fetching pictures, writing files, the other rows of the preview grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duolora.generate import generate
from duolora.train import train_loras
from tests.benchmarks.gpu.ours import SIDES, merge_config, merged
from tests.benchmarks.gpu.timing import Stamps, measured
from tests.benchmarks.gpu.workbench import Findings, Workbench, attempted, release_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from duolora.lora.weights import LoraWeights

DUOLORA, PAPER = "merge, recipe duolora", "merge, recipe paper"


def measure(bench: Workbench) -> Findings:
    """Run the job once after a short one; about 65 s on an H100 at the goals.

    The merge by recipe `paper` is measured here only if the section on merges has not done so.
    """
    stages: list[dict[str, Any]] = []

    def whole() -> dict[str, Any]:
        _warm_up(bench)
        _run(bench, stages)
        return {"seconds": sum(row["seconds"] for row in stages if row["counted"])}

    row = attempted({"stage": "whole job", "counted": True}, whole)
    rows = [*stages, row]
    if "seconds" not in row:
        return Findings({}, rows)
    seconds = {each["stage"]: each["seconds"] for each in stages}
    paper_s = seconds.get(PAPER, bench.figures.get("merge_100_s"))
    figures = {"job_s": row["seconds"], "job_with_paper_merge_s": row["seconds"] - seconds[DUOLORA] + paper_s}
    note = "job_s is training, the merge by recipe duolora and the previews; with the merge by recipe paper instead"
    return Findings(figures, rows, f"{note}, {paper_s:.3g} s, it is {figures['job_with_paper_merge_s']:.3g} s.")


def _warm_up(bench: Workbench) -> None:
    """Run what the job runs once, so that kernels are loaded and libraries have chosen theirs."""
    train_loras(bench.base(), [bench.task(side, steps=2) for side in SIDES])
    preview = bench.job().preview.model_copy(update={"steps": 1})
    generate(bench.base(), [bench.job().prompts.joint], preview)
    release_memory()


def _run(bench: Workbench, rows: list[dict[str, Any]]) -> None:
    """Run the job's stages, adding a row for each that ends."""
    job, base = bench.job(), bench.base()
    stamps = Stamps(bench.device, "training", 10 * bench.scale.stamp_every, bench.scale.stamp_skip)

    def timed(stage: str, work: Callable[[], Any], *, counted: bool = True) -> Any:
        with measured(bench.device) as region:
            made = work()
        rows.append({"stage": stage, "seconds": region.seconds, "peak_gib": region.peak_gib, "counted": counted})
        release_memory()
        return made

    tasks = [bench.task(side, steps=job.content.steps) for side in SIDES]
    loras = timed(f"train both, {job.content.steps} steps a side", lambda: train_loras(base, tasks, stamps))
    rows[-1]["s_per_step"] = stamps.step_s() if len(stamps.times) > 1 else None
    joined: LoraWeights = timed(DUOLORA, lambda: merged(bench, loras, merge_config(bench, "duolora")))
    if "merge_100_s" not in bench.figures:
        timed(PAPER, lambda: merged(bench, loras, merge_config(bench, "paper")), counted=False)
    timed(
        f"{job.preview.images} previews of {job.preview.steps} steps",
        lambda: generate(base, [job.prompts.joint], job.preview, joined),
    )
