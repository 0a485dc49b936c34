"""Whole jobs of a few steps with the real engine process: submitted, run by a worker, their files in the store."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from duolora.config import PersonalizeConfig
from duolora.lora.read import read_lora
from tests.support.company import alone, quick, together
from tests.worker.bench import states
from tests.worker.jobs import submit

if TYPE_CHECKING:
    from pathlib import Path

    from api.jobs.models import Job
    from tests.worker.bench import Bench

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(180)]

FEW = {"steps": {"content": 2, "style": 3, "merge": 1}, "rank": 2}
RESULT = {
    *(f"{side}_lora{infix}.safetensors" for side in ("content", "style") for infix in ("", ".kohya")),
    *(f"merged.{keys}.safetensors" for keys in ("diffusers", "kohya")),
    *("merge_report.json", "merge_plot.png", "preview.png", "report.json"),
}


def download(bench: Bench, job: Job, folder: Path) -> Path:
    folder.mkdir()
    for artifact in job.artifacts:
        (folder / artifact.filename).write_bytes(bench.store.get_bytes(artifact.key))
    return folder


def test_sides_are_trained_in_one_stage_or_in_two_and_the_caller_gets_the_same_files(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(bench), "engine_command", lambda *_: json.dumps([sys.executable, "-m", "worker.engine"]))
    jobs = {name: submit(bench, recipe=quick(recipe), **FEW) for name, recipe in (("one", together), ("two", alone))}

    with bench.worker(ENGINE_START_TIMEOUT_S="60"):
        done = {name: bench.wait_for(job.id, "succeeded") for name, job in jobs.items()}

    assert list(states(done["one"].stages)) == ["loras", "merge", "package"]
    assert list(states(done["two"].stages)) == ["content_lora", "style_lora", "merge", "package"]
    for name, job in done.items():
        files = download(bench, job, tmp_path / name)
        assert {path.name for path in files.iterdir()} == RESULT
        config = PersonalizeConfig.model_validate(job.params)
        for side in ("content", "style"):
            lora = read_lora(files / f"{side}_lora.safetensors")
            assert lora.common_rank == 2
            assert PersonalizeConfig.model_validate_json(lora.metadata["duolora.config"]) == config
