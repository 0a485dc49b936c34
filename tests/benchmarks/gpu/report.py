"""The two files of a run: `gpu.json` for programs, `gpu.md` for people; both are written after every section."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.benchmarks.gpu.workbench import Findings

GOALS = {
    "lora_step_s_per_image": "<= 0.036",
    "lora_step_ratio": ">= 15",
    "merge_100_s": "<= 8",
    "merge_ratio": ">= 40",
    "instant_merge_s": "<= 2",
    "job_s": "<= 60",
    "peak_gib_by_profile": "a profile of 8 GiB that ends",
    "jobs_per_gpu_hour": "",
    "matmul_tflops": "",
}
"""Figures that a run is for, with what is aimed at on an H100."""

MEANINGS = {
    "lora_step_s_per_image": "seconds of our training step over its images, at the best number of images a pass",
    "lora_step_ratio": "diffusers' loop, batch 1, no checkpointing, over ours, a picture",
    "merge_100_s": "seconds of our whole merge of 100 steps, preparation included",
    "merge_ratio": "100 steps of the release, nothing else counted, over merge_100_s",
    "instant_merge_s": "seconds of the whole closed-form merge",
    "job_s": "seconds of the whole warm job",
    "peak_gib_by_profile": "most memory of tensors in the short job, by size of card in GiB",
    "jobs_per_gpu_hour": "by jobs at once",
    "matmul_tflops": "bfloat16 product of random matrices",
}


class OtherMachine(Exception):
    """A report of another machine lies where this one's is to go."""


@dataclass(slots=True)
class Report:
    """What a run knows so far: figures by name, and of every section its rows, note, seconds and error."""

    folder: Path
    machine: Mapping[str, str]
    figures: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def in_folder(cls, folder: Path, machine: Mapping[str, str]) -> Self:
        """Go on with the report that a folder holds, or begin one.

        Raises:
            OtherMachine: the folder's report was measured elsewhere, so that its figures make no ratio with new ones.
        """
        report, known = cls(folder, machine), folder / "gpu.json"
        if known.is_file():
            document = json.loads(known.read_text(encoding="utf-8"))
            report.sections = document.pop("sections", {})
            elsewhere = {section["machine"]["device"] for section in report.sections.values()} - {machine["device"]}
            if elsewhere:
                raise OtherMachine(f"{known} was measured on {', '.join(sorted(elsewhere))}")
            report.figures = {name: value for name, value in document.items() if value is not None}
        return report

    def add(self, name: str, findings: Findings, seconds: float) -> None:
        """Take what a section found, in place of what an earlier one of its name did."""
        self.figures |= findings.figures
        self._take(name, {"note": findings.note, "rows": findings.rows, "error": None}, seconds)

    def fail(self, name: str, error: str, seconds: float) -> None:
        """Take a section's error; figures of an earlier run stay, marked by it."""
        self._take(name, {"note": "", "rows": [], "error": error}, seconds)

    def _take(self, name: str, entry: Mapping[str, Any], seconds: float) -> None:
        measured = {"seconds": round(seconds, 1), "at": now(), "machine": dict(self.machine), "command": command()}
        self.sections[name] = {**entry, **measured}
        self.write()

    def ratios(self) -> dict[str, float]:
        """Return what two sections make together."""
        pairs = {
            "lora_step_ratio": ("diffusers_step_s_per_image", "lora_step_s_per_image"),
            "lora_step_ratio_checkpointed": ("diffusers_checkpointed_step_s_per_image", "lora_step_s_per_image"),
            "lora_step_ratio_batch_4": ("diffusers_batch_4_step_s_per_image", "lora_step_s_per_image"),
            "merge_ratio": ("release_merge_100_s", "merge_100_s"),
            "merge_ratio_ziplora": ("ziplora_merge_100_s", "merge_100_s"),
        }
        return {
            name: self.figures[rival] / self.figures[ours]
            for name, (rival, ours) in pairs.items()
            if rival in self.figures and ours in self.figures
        }

    def write(self) -> None:
        """Write both files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.figures |= self.ratios()
        document = dict.fromkeys(GOALS) | self.figures | {"sections": self.sections}
        text = json.dumps(document, indent=2) + "\n"
        (self.folder / "gpu.json").write_text(text, encoding="utf-8")
        (self.folder / "gpu.md").write_text(self._markdown(), encoding="utf-8")

    def _markdown(self) -> str:
        """Return the report as text."""
        heads = [
            {"figure": name, "value": self.figures.get(name), "goal": goal, "what it is": MEANINGS[name]}
            for name, goal in GOALS.items()
        ]
        others = [{"figure": name, "value": value} for name, value in self.figures.items() if name not in GOALS]
        parts = ["# What one GPU does", "", *table(heads), "", *table(others), ""]
        for name, section in self.sections.items():
            card = ", ".join(str(value) for value in section["machine"].values())
            parts += [f"## {name}", "", f"`{section['command']}`, {section['at']}, {section['seconds']} s; {card}.", ""]
            parts += [f"**Failed:** `{section['error']}`", ""] if section["error"] else []
            parts += [section["note"], ""] if section["note"] else []
            parts += [*table(section["rows"]), ""] if section["rows"] else []
        return "\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a Markdown table with a column for every key of any row."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return lines + [f"| {' | '.join(shown(row.get(name)) for name in columns)} |" for row in rows]


def shown(value: object) -> str:
    """Return a value as a cell shows it: three significant digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {shown(each)}" for name, each in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")


def this_machine(*, small: bool) -> dict[str, str]:
    """Return what it is measured on; tiny sizes make another machine of it, so that nobody takes one for the other."""
    card = f"{platform.machine()} CPU, tiny sizes that measure nothing"
    if not small:
        properties = torch.cuda.get_device_properties(0)
        card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return {
        "device": card,
        "torch": f"torch {torch.__version__}",
        "diffusers": f"diffusers {version('diffusers')}",
        "peft": f"peft {version('peft')}",
        "python": f"Python {platform.python_version()}",
    }


def command() -> str:
    """Return the call that this process was started by, as a person would give it: without folders of one machine."""
    told = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return " ".join(["python -m tests.benchmarks.gpu", *told])


def now() -> str:
    """Return the time, UTC, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
