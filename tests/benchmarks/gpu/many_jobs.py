"""Several jobs on one card: their LoRAs trained in the same passes of the U-Net, then merged and drawn one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

from duolora.train import train_tenants
from tests.benchmarks.gpu.ours import SIDES, measure_merges, measure_previews
from tests.benchmarks.gpu.timing import Stamps, measured
from tests.benchmarks.gpu.workbench import Findings, Workbench, attempted, release_memory


def measure(bench: Workbench) -> Findings:
    """Time the step at each number of jobs; about 60 s on an H100, nothing more if merges and previews are known."""
    after_s = after_training_s(bench)
    rows = [attempted({"jobs_at_once": jobs}, partial(_row, bench, jobs, after_s)) for jobs in bench.scale.tenants]
    hourly = {row["jobs_at_once"]: row["jobs_per_gpu_hour"] for row in rows if "jobs_per_gpu_hour" in row}
    note = (
        f"A job is {bench.scale.job_steps} steps a side at one picture a side and pass, then the merge by recipe "
        f"duolora and the previews ({after_s:.3g} s for both, one job after the other). Starts are measured once."
    )
    return Findings({"jobs_per_gpu_hour": hourly} if hourly else {}, rows, note)


def after_training_s(bench: Workbench) -> float:
    """Return what merge and previews of one job take, as measured in this run or else now."""
    if "duolora_merge_s" not in bench.figures:
        bench.figures.update(measure_merges(bench).figures)
    if "previews_s" not in bench.figures:
        bench.figures.update(measure_previews(bench).figures)
    return float(bench.figures["duolora_merge_s"] + bench.figures["previews_s"])


def _row(bench: Workbench, jobs: int, after_s: float) -> dict[str, Any]:
    """Time the training of several jobs at once and say how many an hour has room for."""
    scale = bench.scale
    tenants = [[bench.task(side, steps=scale.tenant_steps, seed=tenant) for side in SIDES] for tenant in range(jobs)]
    stamps = Stamps(bench.device, "training", scale.stamp_every, scale.stamp_skip)
    with measured(bench.device) as region:
        train_tenants(bench.base(), tenants, stamps)
    release_memory()
    step_s = stamps.step_s()
    start_s = max(0.0, region.seconds - scale.tenant_steps * step_s)
    job_s = (start_s + scale.job_steps * step_s) / jobs + after_s
    return {
        "images_a_pass": 2 * jobs,
        "s_per_step": step_s,
        "s_per_image": step_s / (2 * jobs),
        "start_s": start_s,
        "s_per_job": job_s,
        "jobs_per_gpu_hour": 3600 / job_s,
        "peak_gib": region.peak_gib,
    }
