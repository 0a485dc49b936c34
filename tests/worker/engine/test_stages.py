"""The stages of a job over a workspace folder, each finding only what the ones before it left."""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from duolora.config import PersonalizeConfig, Prompts, TargetLayers
from duolora.errors import Cancelled, InvalidBase, InvalidConfig, InvalidImage, InvalidLora, OutOfMemory
from duolora.events import Silent
from duolora.lora.read import read_lora
from duolora.memory import SPARING
from duolora.recipes import resolve
from tests.duolora.pico import draw_pictures, share_the_cores
from tests.duolora.watch import Watcher
from worker.engine import stages
from worker.engine.protocol import Output, StageOfJob, StageRequest
from worker.engine.stages import BaseModels, run_stage

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.events import Observer

APART = {
    "content_lora": {
        "content_lora": "content_lora.safetensors",
        "content_lora_kohya": "content_lora.kohya.safetensors",
    },
    "style_lora": {"style_lora": "style_lora.safetensors", "style_lora_kohya": "style_lora.kohya.safetensors"},
    "merge": {
        "merged_diffusers": "merged.diffusers.safetensors",
        "merged_kohya": "merged.kohya.safetensors",
        "merge_report": "merge_report.json",
        "merge_plot": "merge_plot.png",
    },
    "package": {"preview": "preview.png", "report": "report.json"},
}
"""Stage -> artifact name -> file name, as the service publishes them, where each side is trained by itself."""

IN_ONE_PASS = {"loras": APART["content_lora"] | APART["style_lora"]} | {
    stage: APART[stage] for stage in ("merge", "package")
}
"""The same where both sides are trained in one pass."""


@pytest.fixture(scope="module", autouse=True)
def one_thread_per_process() -> None:
    share_the_cores()


@pytest.fixture(scope="module")
def models() -> BaseModels:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUOLORA_DEVICE", "cpu")
        return BaseModels()


@pytest.fixture(scope="module")
def config(location: str) -> PersonalizeConfig:
    """Of a job that trains each side by itself."""
    return lean_config(location, company=0.0)


@pytest.fixture(scope="module")
def together(location: str) -> PersonalizeConfig:
    """Of a job that trains both sides in one pass."""
    return lean_config(location, company=0.5)


def lean_config(location: str, *, company: float) -> PersonalizeConfig:
    lean = resolve(
        "tiny", location, Prompts(subject_class="disc"), content_steps=2, style_steps=2, merge_steps=2, rank=2
    )
    changes = {
        "content": {"batch_size": 2, "targets": TargetLayers.ATTENTION, "company": company},
        "style": {"batch_size": 2, "targets": TargetLayers.ATTENTION, "company": company},
        "merge": {"batch_size": 1, "bank_size": 2},
        "preview": {"steps": 2, "images": 2},
    }
    return lean.model_copy(
        update={part: getattr(lean, part).model_copy(update=update) for part, update in changes.items()}
    )


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """What the worker stages in: the pictures of both sides."""
    draw_pictures(tmp_path / "inputs" / "content", ((230, 40, 40), (40, 200, 60)))
    draw_pictures(tmp_path / "inputs" / "style", ((40, 40, 230),))
    return tmp_path / "inputs"


def run(
    stage: str,
    inputs: Path,
    config: PersonalizeConfig,
    models: BaseModels,
    observer: Observer | None = None,
    *,
    partner: str | None = None,
) -> tuple[list[Output], Path]:
    outputs = inputs.parent / f"outputs of {stage}"
    outputs.mkdir()
    stages = [stage] if partner is None else [stage, partner]
    request = StageRequest(
        base=config.base_model,
        members=tuple(
            StageOfJob(job="job", stage=name, config=config, inputs_dir=inputs, outputs_dir=outputs) for name in stages
        ),
    )
    return run_stage(request, models, observer or Silent()), outputs


@pytest.mark.parametrize(("settings", "stages"), [("config", APART), ("together", IN_ONE_PASS)])
def test_stages_leave_exactly_the_artifacts_of_a_job(
    *,
    inputs: Path,
    settings: str,
    stages: dict[str, dict[str, str]],
    models: BaseModels,
    request: pytest.FixtureRequest,
) -> None:
    config: PersonalizeConfig = request.getfixturevalue(settings)
    for stage, files in stages.items():
        watcher = Watcher()
        outputs, folder = run(stage, inputs, config, models, watcher)

        assert {output.name: output.filename for output in outputs} == files
        assert sorted(path.name for path in folder.iterdir()) == sorted(files.values())
        assert len({output.name for output in outputs}) == len(outputs)
        types = {".png": "image/png", ".json": "application/json", ".safetensors": "application/octet-stream"}
        assert all(output.content_type == types[(folder / output.filename).suffix] for output in outputs)
        assert watcher.reports[-1].step == watcher.reports[-1].total > 0
        for path in folder.iterdir():  # the stages after it find them staged in
            shutil.copy(path, inputs)

    with Image.open(inputs / "preview.png") as preview:
        assert preview.format == "PNG"
        assert min(preview.size) > 300
    report = json.loads((inputs / "report.json").read_text())
    assert PersonalizeConfig.model_validate(report["config"]) == config
    assert report["merge"] == json.loads((inputs / "merge_report.json").read_text())
    assert report["merge"]["trainable"] == 2 * 2 * 88


def test_every_stage_says_in_the_jobs_log_what_it_does(
    inputs: Path, config: PersonalizeConfig, models: BaseModels, caplog: pytest.LogCaptureFixture
) -> None:
    said: dict[str, list[str]] = {}
    for stage in APART:
        caplog.clear()
        with caplog.at_level(logging.INFO, "worker.engine"):
            _, folder = run(stage, inputs, config, models)
        lines = [record.getMessage() for record in caplog.records if record.name == "worker.engine"]
        said[stage] = [line for line in lines if line != "base loaded"]  # whoever comes first
        for path in folder.iterdir():
            shutil.copy(path, inputs)
    where = "on cpu in float32, memory profile 80gb"
    assert said == {
        "content_lora": ["learning content: 2 steps at 64 px, batch 2, rank 2, learning rate 0.002", where],
        "style_lora": ["learning style: 2 steps at 64 px, batch 2, rank 2, learning rate 0.002", where],
        "merge": [
            "merged by duolora, begun with masks measured: kept 176 of 176 ranks of content, 176 of 176 ranks of style"
        ],
        "package": ["drawing 2 pictures with each LoRA: 2 steps at 64 px, guidance 4"],
    }


def test_both_files_of_a_lora_hold_the_same(
    inputs: Path, config: PersonalizeConfig, models: BaseModels, location: str
) -> None:
    layers = models.get(location).layers()
    for stage in ("content_lora", "style_lora", "merge", "loras"):
        outputs, folder = run(stage, inputs, config, models)
        loras = [output.filename for output in outputs if output.filename.endswith(".safetensors")]
        for pair in zip(loras[::2], loras[1::2], strict=True):
            diffusers, kohya = (read_lora(folder / filename, layers) for filename in pair)

            assert diffusers.layers.keys() == kohya.layers.keys()
            for name, layer in diffusers.layers.items():
                delta_OI = layer.delta_OI()
                error = (kohya.layers[name].delta_OI() - delta_OI).norm()
                assert error <= 2**-11 * delta_OI.norm(), (pair, name)  # float16, where ranks differ
        for path in folder.iterdir():
            shutil.copy(path, inputs)


def test_one_pass_puts_each_sides_lora_into_its_own_file(
    inputs: Path, together: PersonalizeConfig, models: BaseModels
) -> None:
    _, folder = run("loras", inputs, together, models)

    for side, trigger in (("content", "a sbu disc"), ("style", "in szn style")):
        metadata = read_lora(folder / f"{side}_lora.safetensors").metadata
        assert metadata["modelspec.trigger_phrase"] == trigger
        assert PersonalizeConfig.model_validate_json(metadata["duolora.config"]) == together


def test_sides_are_trained_on_their_own_pictures(inputs: Path, config: PersonalizeConfig, models: BaseModels) -> None:
    outputs, folder = run("content_lora", inputs, config, models)
    before = read_lora(folder / outputs[0].filename)
    shutil.rmtree(folder)

    shutil.rmtree(inputs / "style")  # the content LoRA must not need them
    _, folder = run("content_lora", inputs, config, models)

    after = read_lora(folder / outputs[0].filename)
    assert all(torch.equal(layer.up_OR, after.layers[name].up_OR) for name, layer in before.layers.items())
    for stage in ("style_lora", "loras"):
        with pytest.raises(InvalidImage, match="style"):
            run(stage, inputs, config, models)


def test_merge_without_the_loras_is_refused_by_file_name(
    inputs: Path, config: PersonalizeConfig, models: BaseModels
) -> None:
    with pytest.raises(InvalidLora, match=r"content_lora\.safetensors"):
        run("merge", inputs, config, models)


@pytest.mark.parametrize("stage", ["content_lora", "loras"])
def test_cancelled_stage_leaves_no_file(
    inputs: Path, together: PersonalizeConfig, models: BaseModels, stage: str
) -> None:
    with pytest.raises(Cancelled):
        run(stage, inputs, together, models, Watcher(stop_after=1))

    assert list((inputs.parent / f"outputs of {stage}").iterdir()) == []


@pytest.mark.parametrize("first", ["content_lora", "style_lora"])
def test_a_pair_leaves_the_files_of_both_stages_each_said_to_be_its_own(
    inputs: Path, config: PersonalizeConfig, models: BaseModels, first: str
) -> None:
    second = "style_lora" if first == "content_lora" else "content_lora"

    outputs, folder = run(first, inputs, config, models, partner=second)

    by_member = [{each.name: each.filename for each in outputs if each.member == place} for place in (0, 1)]
    assert by_member == [APART[first], APART[second]]
    assert {path.name for path in folder.iterdir()} == {each.filename for each in outputs}
    for side, trigger in (("content", "a sbu disc"), ("style", "in szn style")):
        metadata = read_lora(folder / f"{side}_lora.safetensors").metadata
        assert metadata["modelspec.trigger_phrase"] == trigger
        assert PersonalizeConfig.model_validate_json(metadata["duolora.config"]) == config


def test_other_stages_cannot_be_run_in_one_pass(inputs: Path, config: PersonalizeConfig, models: BaseModels) -> None:
    with pytest.raises(InvalidConfig, match="merge and package cannot be run in one pass"):
        run("merge", inputs, config, models, partner="package")


def test_unknown_stage_is_refused_with_the_known_ones(
    inputs: Path, config: PersonalizeConfig, models: BaseModels
) -> None:
    with pytest.raises(InvalidConfig, match="'polish'; known: loras, content_lora, style_lora, merge, package"):
        run("polish", inputs, config, models)


def test_base_stays_loaded_until_another_is_asked_for(models: BaseModels, location: str) -> None:
    models.warm(location)

    first = models.get(location)

    assert models.get(location) is first
    assert models.get("tiny") is not first
    assert models.get(location) is not first


def test_work_that_ran_out_of_memory_gets_the_base_in_a_smaller_profile(models: BaseModels, location: str) -> None:
    usual = models.get(location)
    sparing = models.get(location, spares_memory=True)

    assert usual.memory.name == "80gb"  # a CPU has no limits
    assert sparing.memory is SPARING
    assert models.get(location, spares_memory=True) is sparing
    assert models.get(location).memory is usual.memory


def test_a_base_is_loaded_anew_after_running_out_of_memory(
    inputs: Path, config: PersonalizeConfig, models: BaseModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it may have been on its way to the card."""

    def too_much(*_: object, **_how: object) -> None:
        raise OutOfMemory("the GPU ran out of memory")

    before = models.get(config.base_model)
    monkeypatch.setattr(stages, "train_jobs", too_much)
    with pytest.raises(OutOfMemory):
        run("content_lora", inputs, config, models)
    assert models.get(config.base_model) is not before


def test_memory_profile_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    monkeypatch.setenv("DUOLORA_DEVICE", "cpu")
    monkeypatch.setenv("DUOLORA_MEMORY", "12gb")
    models = BaseModels()
    assert models.get(location).memory.name == "12gb"
    assert not models.pairs(location)
    assert not models.shares_passes(location)
    assert models.get(location, spares_memory=True).memory.name == "8gb"

    monkeypatch.setenv("DUOLORA_MEMORY", "huge")
    with pytest.raises(InvalidConfig, match=r"DUOLORA_MEMORY is 'huge'.*12gb"):
        BaseModels()


def test_warming_a_base_that_is_not_there_is_refused(models: BaseModels, tmp_path: Path) -> None:
    with pytest.raises(InvalidBase):
        models.warm(str(tmp_path))


def test_device_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOLORA_DEVICE", "cpu")
    assert BaseModels().device == "cpu"

    monkeypatch.setenv("DUOLORA_DEVICE", "toaster")
    with pytest.raises(InvalidConfig, match="toaster"):
        BaseModels()
