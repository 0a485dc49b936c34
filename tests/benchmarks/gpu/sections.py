"""The sections of a run, in the order they are measured in; a section that fails is recorded and the rest goes on."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tests.benchmarks.gpu import (
    base_check,
    cards,
    correctness,
    diffusers_loop,
    loss_curves,
    many_jobs,
    merge_rivals,
    ours,
    profiles,
    whole_job,
)
from tests.benchmarks.gpu.workbench import FAILED, Findings, Workbench, described, release_memory

if TYPE_CHECKING:
    from tests.benchmarks.gpu.report import Report

Section = Callable[[Workbench], Findings]

SECTIONS: Mapping[str, Section] = {
    "correctness": correctness.measure,
    "base": base_check.measure,
    "matmul": ours.measure_matmul,
    "diffusers_loop": diffusers_loop.measure,
    "lora_step": ours.measure_lora_step,
    "merge_rivals": merge_rivals.measure,
    "merges": ours.measure_merges,
    "previews": ours.measure_previews,
    "job": whole_job.measure,
    "loss_curves": loss_curves.measure,
    "many_jobs": many_jobs.measure,
    "cards": cards.measure,
    "profiles": profiles.measure,
}
"""Name -> section; together about 560 s on an H100 with an engine near its goals, the longest last."""


def run_sections(
    bench: Workbench, report: Report, names: Sequence[str], sections: Mapping[str, Section] = SECTIONS
) -> list[str]:
    """Measure some sections, writing the report after each; return the names of those that failed."""
    failed: list[str] = []
    for name in names:
        sys.stdout.write(f"{name} ...\n")
        sys.stdout.flush()
        began = time.perf_counter()
        try:
            bench.figures.update(report.figures)
            findings = sections[name](bench)
        except Exception as error:  # noqa: BLE001 - the boundary of a section, which records what it caught
            failed.append(name)
            report.fail(name, described(error), time.perf_counter() - began)
            traceback.print_exc()
        else:
            report.add(name, findings, time.perf_counter() - began)
            if any(str(row.get("result", "")).startswith(FAILED) for row in findings.rows):
                failed.append(name)
        if name in failed:
            bench.drop_base()  # the section may have left something on it
        release_memory()
        sys.stdout.write(f"{name}: {time.perf_counter() - began:.1f} s{' FAILED' if name in failed else ''}\n")
        sys.stdout.flush()
    return failed
