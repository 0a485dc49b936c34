from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from duolora.baselines import duolora_release
from duolora.cli import main
from duolora.config import Prompts
from duolora.images import list_pictures
from duolora.lesson import Lesson
from duolora.lora.parts import Parts, join_sides
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from duolora.merge import MergeSide, merge_case
from duolora.personalize import captions
from duolora.recipes import MERGE_RECIPES
from duolora.strengths import reweight
from tests.duolora.dense import assert_same_change, difference
from tests.duolora.pico import draw_pictures, random_lora

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase


SHORT = ["--steps", "2", "--rank", "3"]


def shared(base_folder: Path) -> list[str]:
    return ["--base", str(base_folder), "--recipe", "tiny", "--class", "disc", "--seed", "3", "--device", "cpu"]


def duolora(*words: object) -> int:
    """The status that the command line ends with."""
    return main([str(word) for word in words])


@pytest.fixture
def folders(pictures: dict[str, list[Path]]) -> dict[str, Path]:
    return {side: shown[0].parent for side, shown in pictures.items()}


def images(folders: dict[str, Path]) -> list[str]:
    """The options that name every side's pictures."""
    return [word for side, folder in folders.items() for word in (f"--{side}-images", str(folder))]


def read(path: Path, base: DiffusionBase) -> Any:
    return read_lora(path, base.layers())


def test_train_merge_generate_and_inspect_work_together(
    *,
    base: DiffusionBase,
    base_folder: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = shared(base_folder)

    for side, folder in folders.items():
        out = tmp_path / f"{side}.safetensors"
        assert duolora("train", side, folder, *SHORT, "--out", out, *common, "--style-caption", "a ball") == 0
    loras = {side: read(tmp_path / f"{side}.safetensors", base) for side in folders}
    assert {lora.common_rank for lora in loras.values()} == {3}
    assert loras["content"].metadata["modelspec.trigger_phrase"] == "a sbu disc"

    inputs = [tmp_path / "content.safetensors", tmp_path / "style.kohya.safetensors"]  # either format
    merged = tmp_path / "out" / "merged.safetensors"
    assert duolora("merge", *inputs, *images(folders), "--steps", 2, "--out", merged, *common) == 0
    assert set(read(merged, base).layers) == set(read(merged.with_suffix(".kohya.safetensors"), base).layers)
    assert Parts.of(read(merged, base)).sides == ("content", "style")

    drawn = tmp_path / "drawn"
    prompt = "a sbu disc in szn style"
    assert duolora("generate", prompt, "--lora", merged, "--images", 2, "--out", drawn, *common) == 0
    pictures = [np.asarray(Image.open(drawn / f"00{index}.png")) for index in range(2)]
    assert [picture.shape for picture in pictures] == [(64, 64, 3)] * 2
    assert not np.array_equal(*pictures)

    capsys.readouterr()
    assert duolora("inspect", merged, "--base", base_folder) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["layers"] == len(read(merged, base).layers)
    assert max(said["ranks"]) <= 6
    assert said["metadata"]["modelspec.trigger_phrase"] == prompt


def test_a_command_spares_memory_as_it_is_told(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "drawn"
    command = ["generate", "a disc", "--images", 1, "--out", drawn, *shared(base_folder)]
    assert duolora(*command, "--memory", "12gb") == 0
    assert list(drawn.iterdir())

    assert duolora(*command, "--memory", "13gb") == 1
    assert "--memory is '13gb'" in capsys.readouterr().err


def test_both_sides_are_trained_in_one_pass_into_a_folder(
    base: DiffusionBase, base_folder: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "loras"

    assert duolora("train", "both", *folders.values(), *SHORT, "--out", out, *shared(base_folder)) == 0

    names = {f"{side}_lora{infix}.safetensors" for side in ("content", "style") for infix in ("", ".kohya")}
    assert {path.name for path in out.iterdir()} == names
    loras = {side: read(out / f"{side}_lora.safetensors", base) for side in ("content", "style")}
    assert loras["content"].metadata["modelspec.trigger_phrase"] == "a sbu disc"
    assert loras["style"].metadata["modelspec.trigger_phrase"] == "in szn style"
    config = json.loads(loras["style"].metadata["duolora.config"])
    assert [config[side]["steps"] for side in loras] == [2, 2]
    assert config["merge"]["steps"] == 0  # the recipe's own: --steps is about the training


def test_commands_go_on_from_their_own_checkpoints_only(
    *,
    base: DiffusionBase,
    base_folder: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept, out = tmp_path / "kept", tmp_path / "out"
    words = ["train", "both", *folders.values(), *SHORT, *shared(base_folder), "--checkpoints", kept]
    assert duolora(*words, "--out", out / "first") == 0
    assert [path.name for path in kept.iterdir()] == ["2"]
    steps: list[int] = []
    monkeypatch.setattr(Lesson, "step", lambda _self, step: steps.append(step) or [0.0])

    assert duolora(*words, "--out", out / "second") == 0
    assert steps == []
    for side in folders:
        first, second = (read(out / time / f"{side}_lora.safetensors", base) for time in ("first", "second"))
        assert_same_change(second, first, 0)

    assert duolora(*words, "--seed", 4, "--out", out / "third") == 0
    assert steps == [0, 1]


def test_a_merge_goes_on_from_its_checkpoint(
    base_folder: Path, folders: dict[str, Path], lora_files: dict[str, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    words = ["merge", *lora_files.values(), *images(folders), "--merge-recipe", "paper", "--steps", "1"]

    for _ in range(2):
        assert duolora(*words, *shared(base_folder), "--checkpoints", kept, "--out", tmp_path / "m.safetensors") == 0
        assert [path.name for path in kept.iterdir()] == ["1"]


@pytest.mark.parametrize("side", ["content", "both"])
def test_class_is_preserved_and_text_encoders_are_adapted_when_asked_for(
    *, base: DiffusionBase, base_folder: Path, content_pictures: list[Path], tmp_path: Path, side: str
) -> None:
    given = [content_pictures[0].parent] * (2 if side == "both" else 1)
    out = tmp_path / ("loras" if side == "both" else "content_lora.safetensors")
    extras = ["--preserve", "0.5", "--class-pictures", "2", "--text-encoder"]

    assert duolora("train", side, *given, *extras, *SHORT, "--out", out, *shared(base_folder)) == 0

    for path in sorted((out if side == "both" else tmp_path).glob("*_lora.safetensors")):
        lora = read(path, base)
        assert {name.partition(".")[0] for name in lora.layers} == {"unet", "text_encoder", "text_encoder_2"}
        settings = json.loads(lora.metadata["duolora.config"])
        for trained in ("content", "style"):
            assert settings[trained]["preservation"] == {"weight": 0.5, "pictures": 2}
            assert settings[trained]["text_encoder"] is True


def test_one_picture_a_side_is_enough(*, base: DiffusionBase, base_folder: Path, tmp_path: Path) -> None:
    common = shared(base_folder)
    colours = {"content": (230, 40, 40), "style": (40, 40, 230)}
    single = {side: draw_pictures(tmp_path / side, (colour,))[0].parent for side, colour in colours.items()}
    captions = ["--content-caption", "a sbu disc on a ramp", "--style-caption", "a ball"]
    merged, drawn = tmp_path / "merged.safetensors", tmp_path / "drawn"

    assert duolora("train", "both", *single.values(), "--out", tmp_path, *SHORT, *captions, *common) == 0
    files = [tmp_path / f"{side}_lora.safetensors" for side in single]
    assert duolora("merge", *files, *images(single), "--out", merged, "--steps", 2, *captions, *common) == 0
    assert duolora("generate", "a sbu disc in szn style", "--lora", merged, "--out", drawn, *common) == 0
    assert duolora("generate", "a sbu disc in szn style", "--out", drawn / "base", *common) == 0

    for path in (*files, merged):
        layers = read(path, base).layers
        assert max(layer.up_OR.abs().max() for layer in layers.values()) > 0
        assert all(layer.up_OR.isfinite().all() for layer in layers.values())
    config = json.loads(read(merged, base).metadata["duolora.config"])
    assert config["prompts"]["content_captions"] == ["a sbu disc on a ramp"]
    pictures = [np.asarray(Image.open(folder / "000.png")) for folder in (drawn, drawn / "base")]
    assert not np.array_equal(*pictures)


@pytest.mark.parametrize("options", [[], ["--preserve", "0"]])
def test_pictures_of_a_class_that_is_not_preserved_are_refused(
    content_pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    command = ["train", "content", content_pictures[0].parent, "--class-pictures", 4, *options]

    assert duolora(*command, "--out", tmp_path / "x.safetensors") == 1

    assert "without --preserve WEIGHT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["both", "{folder}", "--out", "{out}"], "takes the content's folder and the style's folder, but 1 came"),
        (["content", "{folder}", "{folder}", "--out", "{out}.safetensors"], "takes one folder of pictures, but 2 came"),
        (["both", "{folder}", "{folder}", "--out", "{out}.safetensors"], "must name a folder"),
        (["both", "{folder}", "{folder}", "--out", "{picture}"], "must name a folder"),
    ],
)
def test_folders_and_output_must_fit_what_is_trained(
    *,
    content_pictures: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"folder": content_pictures[0].parent, "picture": content_pictures[0], "out": tmp_path / "out"}

    assert duolora("train", *(argument.format(**places) for argument in arguments)) == 1

    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def lora_files(base: DiffusionBase, tmp_path: Path) -> dict[str, Path]:
    files = {side: tmp_path / f"{side}.safetensors" for side in ("content", "style")}
    for seed, path in enumerate(files.values()):
        write_diffusers(random_lora(base, seed=seed, ranks=(3,)), path)
    return files


@pytest.fixture
def merged_file(base: DiffusionBase, tmp_path: Path) -> Path:
    sides = {side: random_lora(base, seed=seed, ranks=(2, 3)) for seed, side in enumerate(("content", "style"))}
    write_diffusers(join_sides(sides), tmp_path / "merged.safetensors")
    return tmp_path / "merged.safetensors"


@pytest.mark.parametrize(
    "strengths",
    [["--content-strength", ".8", "--style-strength", "1.2"], ["--strength", "content=.8", "--strength", "style=1.2"]],
)
def test_strengths_of_a_merged_file_are_changed_without_a_merge(
    *, base: DiffusionBase, base_folder: Path, merged_file: Path, tmp_path: Path, strengths: list[str]
) -> None:
    out = tmp_path / "adjusted.safetensors"

    assert duolora("merge", merged_file, *strengths, "--out", out, "--base", base_folder) == 0

    before, after = read(merged_file, base), read(out, base)
    wanted = reweight(before, {"content": 0.8, "style": 1.2})
    assert_same_change(after, wanted, 1e-3)
    assert read(out.with_suffix(".kohya.safetensors"), base).layers.keys() == after.layers.keys()


@pytest.mark.parametrize("mixes", [True, False])
def test_merged_file_is_pruned_and_says_what_it_cost(
    *,
    base: DiffusionBase,
    base_folder: Path,
    merged_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mixes: bool,
) -> None:
    out = tmp_path / "small.safetensors"
    options = ["--target-size-mb", ".05", "--out", out, "--base", base_folder]

    assert duolora("merge", merged_file, *options, *(["--mix-parts"] if mixes else [])) == 0

    assert out.stat().st_size <= 50_000 < merged_file.stat().st_size
    assert out.with_suffix(".kohya.safetensors").stat().st_size <= 50_000
    said = " ".join(capsys.readouterr().err.split())
    assert "ranks pruned to" in said
    assert "of the change is lost" in said
    assert ("duolora.parts" in read(out, base).metadata) is not mixes


def test_three_loras_merge_without_pictures_and_stay_addressable(
    base: DiffusionBase, base_folder: Path, lora_files: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "three.safetensors"
    inputs = [*lora_files.values(), "--also", f"style-2={lora_files['style']}"]

    assert duolora("merge", *inputs, "--strength", "style-2=0.5", "--out", out, "--base", base_folder) == 0

    merged = read(out, base)
    assert Parts.of(merged).sides == ("content", "style", "style-2")
    half, whole = (only_side(merged, side) for side in ("style-2", "style"))
    for name, layer in whole.layers.items():
        torch.testing.assert_close(half.layers[name].delta_OI(), 0.5 * layer.delta_OI(), rtol=1e-2, atol=1e-5)


def only_side(merged: LoraWeights, wanted: str) -> LoraWeights:
    return reweight(merged, {side: float(side == wanted) for side in Parts.of(merged).sides})


@pytest.mark.parametrize("recipe", ["paper", "release", "instant", "duolora"])
def test_every_reading_of_the_merge_can_be_chosen_by_name(
    *,
    base: DiffusionBase,
    base_folder: Path,
    lora_files: dict[str, Path],
    folders: dict[str, Path],
    tmp_path: Path,
    recipe: str,
) -> None:
    inputs = [*lora_files.values(), *images(folders), "--merge-recipe", recipe]
    steps = ["--steps", "1"] if recipe in {"paper", "release"} else []
    out = tmp_path / "merged.safetensors"

    assert duolora("merge", *inputs, *steps, "--out", out, *shared(base_folder)) == 0

    config = json.loads(read(out, base).metadata["duolora.config"])["merge"]
    expected = MERGE_RECIPES[recipe].model_dump(mode="json") | {"seed": 3} | ({"steps": 1} if steps else {})
    assert config == expected


def test_release_by_name_writes_the_weights_of_the_release(
    *,
    base: DiffusionBase,
    base_folder: Path,
    lora_files: dict[str, Path],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    common = [*images(folders), "--steps", 2, *shared(base_folder)]

    found = {}
    for recipe in ("release", "paper"):
        out = tmp_path / f"{recipe}.safetensors"
        assert duolora("merge", *lora_files.values(), "--merge-recipe", recipe, "--out", out, *common) == 0
        found[recipe] = read(out, base)

    prompts = Prompts(subject_class="disc")
    pictures = {side: list_pictures(folder) for side, folder in folders.items()}
    sides = {
        side: MergeSide(read(lora_files[side], base), pictures[side], captions(side, prompts, len(pictures[side])))
        for side in pictures
    }
    settings = MERGE_RECIPES["release"].model_copy(update={"seed": 3})
    case = merge_case(base, sides, prompts.joint, settings, resolution_px=64)
    [expected] = duolora_release.merge(base, [case], steps=2)
    assert_same_change(found["release"], expected, 2e-3)  # files are float16
    assert min(difference(found["paper"].layers[name], layer) for name, layer in expected.layers.items()) > 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one file alone is adjusted"),
        (["{file}", "--merge-recipe", "paper"], "content, style has none"),
        (["{file}", "--also", "ink.safetensors"], "--also must be SIDE=PATH"),
        (["{file}", "--also", "ink={file}"], "must begin with content or style"),
        (["{file}", "--strength", "style-2=1"], "the sides of this merge are content, style"),
        (["--strength", "content"], "must be SIDE=X"),
        (["--strength", "subject=1"], "no side 'subject'"),
        (["--target-rank", "0"], "target rank must be a positive number"),
        (["--style-strength", "nan"], "finite"),
        (["--content-strength", "0", "--style-strength", "0"], "changes nothing"),
        (["{file}", "--also", "style={file}"], "--also names 'style', which is given already"),
        (["{file}", *2 * ["--also", "style-2={file}"]], "--also names 'style-2', which is given already"),
        (["{file}", "--also-images", "style-2={folder}"], "--also-images names 'style-2', but no --also does"),
        (["{file}", "--also-images", "style={folder}"], "--also-images names 'style', but no --also does"),
        (
            ["{file}", "--also", "style-2={file}", *2 * ["--also-images", "style-2={folder}"]],
            "--also-images names 'style-2', which is given already",
        ),
        (["{file}", "--also", "style-2={file}", "--merge-recipe", "release"], "the release merges one content and one"),
        (["{file}", "--also", "style-2={file}", "--merge-recipe", "instant"], "this merge learns from captions"),
        (["{file}", "--mix-parts"], "--mix-parts is about pruning"),
        (["--content-strength", "2", "--mix-parts"], "--mix-parts is about pruning"),
        (["{file}", "--target-size-mb", "nan"], "target size must be a positive number"),
        (["--target-size-mb", "nan"], "target size must be a positive number, not nan"),
        (["--target-size-mb", "inf"], "target size must be a positive number, not inf"),
        (["--target-size-mb", "1e305"], "target size must be a positive number"),
        (["--target-size-mb", "0"], "target size must be a positive number, not 0"),
        (["--target-size-mb=-1"], "target size must be a positive number, not -1"),
        (["--target-rank", "nan"], "target rank must be a positive number, not nan"),
        *(
            (["--content-strength", "2", option, value], f"{option} is for merging, but one file alone is adjusted")
            for option, value in (
                ("--also", "style-2={file}"),
                ("--also-images", "style-2={folder}"),
                ("--content-images", "{folder}"),
                ("--style-images", "{folder}"),
                ("--merge-recipe", "paper"),
                ("--steps", "5"),
            )
        ),
    ],
)
def test_adjustment_that_makes_no_sense_is_one_line(
    *,
    base_folder: Path,
    merged_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [argument.format(file=merged_file, folder=tmp_path) for argument in arguments]

    assert duolora("merge", merged_file, *given, "--out", tmp_path / "x.safetensors", "--base", base_folder) == 1

    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "x.safetensors").exists()


def test_unmerged_file_cannot_be_reweighted(
    base: DiffusionBase, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kohya(random_lora(base), tmp_path / "lora.safetensors")
    command = ["merge", tmp_path / "lora.safetensors", "--content-strength", 2, "--base", base_folder]

    assert duolora(*command, "--out", tmp_path / "x.safetensors") == 1

    assert "only a file merged by DuoLoRA" in " ".join(capsys.readouterr().err.split())


def test_inspect_reads_kohya_keys_of_the_shipped_base(
    base: DiffusionBase, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = random_lora(base, ranks=(1, 2))
    write_kohya(lora, tmp_path / "lora.safetensors")

    assert duolora("inspect", tmp_path / "lora.safetensors", "--base", base_folder) == 0

    said = json.loads(capsys.readouterr().out)
    assert (said["layers"], said["ranks"], said["numbers"]) == (88, [1, 2], lora.trainable_numbers)
    assert (said["family"], said["components"], said["convolutions"]) == ("SDXL", {"unet": 88}, 0)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--rank", "0"], "content.rank"),
        (["--steps", "0"], "content.steps"),
        (["--seed", "-1"], "content.seed"),
        (["--preserve", "-1"], "content.preservation.weight"),
        (["--class-pictures", "0"], "content.preservation.pictures"),
        (["--content-trigger", ""], "content_trigger"),
        (["--content-trigger", "szn"], "must differ"),
        (["--style-caption", ""], "style_captions.0"),
        (["--content-caption", "a disc"], "lacks the word"),
    ],
)
def test_bad_value_ends_with_status_2_and_names_the_field(
    content_pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], field: str
) -> None:
    out = tmp_path / "lora.safetensors"

    assert duolora("train", "content", content_pictures[0].parent, "--out", out, *options) == 2

    assert field in capsys.readouterr().err
    assert not out.exists()


def test_bad_number_of_images_names_the_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert duolora("generate", "a dog", "--images", 99, "--out", tmp_path) == 2
    assert "images" in capsys.readouterr().err


@pytest.mark.parametrize("argument", [["--steps", "many"], ["--recipe", "huge"], ["sideways"]])
def test_argument_that_is_none_ends_with_status_2(tmp_path: Path, argument: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        duolora("train", "content", tmp_path, "--out", tmp_path / "x", *argument)

    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "content", "{empty}", "--out", "{empty}/x.safetensors"], "holds no pictures"),
        (["inspect", "{empty}/absent.safetensors", "--base", "{base}"], "absent.safetensors"),
        (["inspect", "{empty}/absent.safetensors", "--base", "{empty}"], "cannot be read as a base model"),
    ],
)
def test_error_of_the_engine_is_one_line_and_status_1(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert duolora(*(part.format(empty=tmp_path, base=base_folder) for part in command)) == 1

    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("duolora: ")
    assert message in last


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["up", "--help"]])
def test_help_answers_without_importing_torch(arguments: list[str]) -> None:
    program = f"""
import sys
from duolora.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    print("status", stop.code)
print("heavy", sorted({{"torch", "diffusers", "transformers", "peft"}} & set(sys.modules)))
"""

    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout

    assert said.splitlines()[-2:] == ["status 0", "heavy []"]
    assert "usage: duolora" in said
