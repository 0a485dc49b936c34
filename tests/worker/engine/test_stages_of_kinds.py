"""The stages of jobs that train, merge or draw only, over a workspace folder as the worker fills it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from duolora.config import Prompts
from duolora.errors import InvalidConfig, InvalidLora
from duolora.events import Silent
from duolora.job_configs import GenerateJobConfig, MergeJobConfig, TrainJobConfig
from duolora.lora.parts import Parts
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from duolora.recipes import resolve
from tests.duolora.pico import draw_pictures, random_lora, share_the_cores
from worker.engine.protocol import Output, StageOfJob, StageRequest
from worker.engine.stages import BaseModels, run_stage

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.config import PersonalizeConfig
    from duolora.job_configs import JobConfig

MERGED = {"merged.diffusers.safetensors", "merged.kohya.safetensors", "merge_report.json", "merge_plot.png"}


@pytest.fixture(scope="module", autouse=True)
def one_thread_per_process() -> None:
    share_the_cores()


@pytest.fixture(scope="module")
def models() -> BaseModels:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUOLORA_DEVICE", "cpu")
        return BaseModels()


@pytest.fixture
def inputs(tmp_path: Path, models: BaseModels, location: str) -> Path:
    """Two LoRAs as the worker brings them for a merge, and the same for drawing; in keys of either kind."""
    base = models.get(location)
    folder = tmp_path / "inputs"
    (folder / "loras").mkdir(parents=True)
    for seed, side in enumerate(("content", "style")):
        lora = random_lora(base, seed=seed, ranks=(2,)).with_metadata(**{"modelspec.title": f"the {side}"})
        write_diffusers(lora, folder / "loras" / f"{side}_0.safetensors", family=base.family)
        write_kohya(lora, folder / "loras" / f"drawing_{seed}.safetensors", family=base.family)
    return folder


def whole(location: str, **changes: Any) -> PersonalizeConfig:
    config = resolve("tiny", location, Prompts(subject_class="disc"), content_steps=2, style_steps=2, rank=2, **changes)
    return config.model_copy(update={"preview": config.preview.model_copy(update={"steps": 2, "images": 2})})


def run(stage: str, inputs: Path, config: JobConfig, models: BaseModels) -> tuple[list[Output], Path]:
    """Run a stage; what it leaves is staged in for those after it."""
    outputs = inputs.parent / f"outputs of {stage}"
    outputs.mkdir()
    member = StageOfJob(job="job", stage=stage, config=config, inputs_dir=inputs, outputs_dir=outputs)
    named = run_stage(StageRequest(base=config.base_model, members=(member,)), models, Silent())
    assert {each.filename for each in named} == {path.name for path in outputs.iterdir()}
    assert len({each.name for each in named}) == len(named)
    for path in outputs.iterdir():
        shutil.copy(path, inputs)
    return named, outputs


def report_in(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


@pytest.mark.parametrize("sides", [["content"], ["style"], ["content", "style"]])
def test_a_training_leaves_the_loras_of_its_sides_and_shows_them(
    tmp_path: Path, models: BaseModels, location: str, sides: list[str]
) -> None:
    folder, config = tmp_path / "inputs", TrainJobConfig.of(whole(location), sides)
    for side in sides:
        draw_pictures(folder / side, ((230, 40, 40), (40, 200, 60)))
        _, outputs = run(f"{side}_lora", folder, config, models)
        assert read_lora(outputs / f"{side}_lora.safetensors").common_rank == 2
        words = read_lora(outputs / f"{side}_lora.safetensors").metadata["duolora.config"]
        assert TrainJobConfig.model_validate_json(words) == config

    named, outputs = run("package", folder, config, models)

    assert [each.name for each in named] == ["preview", "report"]
    report = report_in(outputs)
    assert "merge" not in report
    assert report["config"] == config.model_dump(mode="json")
    with Image.open(outputs / "preview.png") as preview:
        assert preview.height > 400 * len(sides)


def test_a_merge_of_two_files_gives_one_and_a_slider(inputs: Path, models: BaseModels, location: str) -> None:
    config = MergeJobConfig.of(whole(location, slider=3))

    merged, folder = run("merge", inputs, config, models)
    assert {each.filename for each in merged} == MERGED
    lora = read_lora(folder / "merged.diffusers.safetensors")
    assert Parts.of(lora).sides == ("content", "style")
    assert lora.metadata["modelspec.merged_from"] == "the content, the style"

    named, folder = run("package", inputs, config, models)
    assert [each.name for each in named] == ["preview", "slider_0", "slider_1", "slider_2", "report"]
    report = report_in(folder)
    assert report["slider"] == [
        {"artifact": "slider_0", "content": 1.0, "style": 0.0},
        {"artifact": "slider_1", "content": 1.0, "style": 1.0},
        {"artifact": "slider_2", "content": 0.0, "style": 1.0},
    ]
    assert [(each["side"], each["title"], each["ranks"]) for each in report["loras"]] == [
        ("content", "the content", [2]),
        ("style", "the style", [2]),
    ]
    assert report["merge"] == json.loads((inputs / "merge_report.json").read_text())
    with Image.open(folder / "slider_0.png") as picture:
        assert picture.size == (64, 64)


def test_a_merge_that_learns_is_given_the_pictures(inputs: Path, models: BaseModels, location: str) -> None:
    for side in ("content", "style"):
        draw_pictures(inputs / side, ((230, 40, 40),))
    config = MergeJobConfig.of(whole(location, merge_recipe="instant"))
    run("merge", inputs, config, models)
    named, _ = run("package", inputs, config, models)
    assert [each.name for each in named] == ["preview", "report"]


def test_prompts_are_drawn_and_the_report_says_which_picture_is_which(
    inputs: Path, models: BaseModels, location: str
) -> None:
    config = GenerateJobConfig.of(
        whole(location), prompts=("a disc", "a ball"), strengths=(1.0, 0.5), wishes={"images": 2}
    )

    named, folder = run("generate", inputs, config, models)

    pictures = [f"picture_{place:03d}" for place in range(4)]
    assert [each.name for each in named] == [*pictures, "preview", "report"]
    report = report_in(folder)
    assert [(each["artifact"], each["prompt"], each["ordinal"]) for each in report["pictures"]] == [
        ("picture_000", "a disc", 0),
        ("picture_001", "a disc", 1),
        ("picture_002", "a ball", 0),
        ("picture_003", "a ball", 1),
    ]
    assert [(each["title"], each["strength"]) for each in report["loras"]] == [("the content", 1.0), ("the style", 0.5)]
    assert len({(folder / f"{name}.png").read_bytes() for name in pictures}) == 4


def test_a_file_that_does_not_fit_the_base_is_the_callers_fault(
    inputs: Path, models: BaseModels, location: str
) -> None:
    (inputs / "loras" / "drawing_0.safetensors").write_bytes(b"no LoRA at all")
    config = GenerateJobConfig.of(whole(location), prompts=("a disc",), strengths=(1.0,), wishes={})
    with pytest.raises(InvalidLora, match=r"drawing_0\.safetensors"):
        run("generate", inputs, config, models)


@pytest.mark.parametrize(
    ("stage", "kind"), [("content_lora", "merge"), ("merge", "train"), ("package", "generate"), ("generate", "train")]
)
def test_a_stage_that_a_kind_does_not_have_is_refused(
    inputs: Path, models: BaseModels, location: str, stage: str, kind: str
) -> None:
    draw_pictures(inputs / "content", ((230, 40, 40),))
    config = {
        "merge": MergeJobConfig.of(whole(location)),
        "train": TrainJobConfig.of(whole(location), ["content"]),
        "generate": GenerateJobConfig.of(whole(location), prompts=("x",), strengths=(), wishes={}),
    }[kind]
    with pytest.raises(InvalidConfig, match=f"has no stage '{stage}'"):
        run(stage, inputs, config, models)
