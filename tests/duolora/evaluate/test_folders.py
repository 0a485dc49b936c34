"""The paper's protocol on folders: how they are read, scored and reported."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from PIL import Image

from duolora.cli import main
from duolora.errors import InvalidConfig, InvalidImage
from duolora.evaluate.folder_suite import PAPER_PROMPTS, read_suite
from duolora.evaluate.perceptual import Clip, Csd, Dino
from tests.duolora.pico import draw_pictures

pytestmark = pytest.mark.xdist_group("folders suite")

CPU = torch.device("cpu")
COLOURS = ((230, 40, 40), (40, 200, 60), (40, 40, 230), (240, 220, 40))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("folders")
    draw_pictures(path / "subjects" / "backpack_dog", COLOURS[:2])
    draw_pictures(path / "subjects" / "dog2", COLOURS[1:2])
    draw_pictures(path / "styles" / "oil_paint", COLOURS[2:])
    (path / "styles" / "oil_paint" / "captions.txt").write_text("a house\na bicycle\n")
    (path / "subjects" / "classes.txt").write_text("backpack_dog,backpack\n")
    return path


def test_every_subject_meets_every_style(folders):
    suite = read_suite(folders)
    assert [pair.name for pair in suite.pairs] == ["backpack_dog in oil_paint", "dog2 in oil_paint"]
    assert [pair.subject.noun for pair in suite.pairs] == ["backpack", "dog"]
    first = suite.pairs[0]
    assert first.prompts.style(1) == "a bicycle in szn style"
    assert first.prompt(PAPER_PROMPTS[0]) == first.prompts.joint == "a sbu backpack in szn style"
    assert first.plain_text("a sbu {class} in szn style on a beach") == "a backpack in oil paint style on a beach"


def test_prompts_come_from_a_file_and_must_name_the_triggers(folders, tmp_path):
    copy = tmp_path / "copy"
    (copy / "subjects").mkdir(parents=True)
    (copy / "subjects" / "dog").symlink_to(folders / "subjects" / "dog2")
    (copy / "styles").symlink_to(folders / "styles")
    (copy / "prompts.txt").write_text("a sbu {class} in szn style\n\na sbu {class} on a beach in szn style\n")
    assert len(read_suite(copy).templates) == 2
    (copy / "prompts.txt").write_text("a {class} in szn style\n")
    with pytest.raises(InvalidConfig, match="sbu and szn"):
        read_suite(copy)


@pytest.mark.parametrize("missing", ["subjects", "styles"])
def test_missing_folders_are_named(tmp_path, missing):
    for side in {"subjects", "styles"} - {missing}:
        draw_pictures(tmp_path / side / "one", COLOURS[:1])
    with pytest.raises(InvalidConfig, match=missing):
        read_suite(tmp_path)


def test_an_empty_subject_and_captions_that_do_not_fit_are_refused(folders, tmp_path):
    (tmp_path / "subjects" / "empty").mkdir(parents=True)
    draw_pictures(tmp_path / "styles" / "one", COLOURS[:1])
    with pytest.raises(InvalidImage, match="empty"):
        read_suite(tmp_path)
    draw_pictures(tmp_path / "subjects" / "empty", COLOURS[:1])
    (tmp_path / "styles" / "one" / "captions.txt").write_text("a\nb\n")
    with pytest.raises(InvalidConfig, match="2 lines for 1 pictures"):
        read_suite(tmp_path)


@pytest.fixture(scope="module")
def networks(dino_folder, clip_folder, csd_file):
    return ["--dino", str(dino_folder), "--clip", str(clip_folder), "--csd", str(csd_file)]


@pytest.fixture(scope="module")
def finished(folders, base_folder, networks, tmp_path_factory):
    out = tmp_path_factory.mktemp("folder-run")
    arguments = ["evaluate", "--suite", "folders", str(folders), "--out", str(out), *networks]
    few = ["--methods", "duolora,joint-training", "--seeds", "1", "--lora-steps", "1", "--pictures", "2"]
    arguments += [*few, "--base", str(base_folder), "--recipe", "tiny", "--device", "cpu"]
    assert main(arguments) == 0
    return out, arguments


def test_the_table_has_a_row_for_each_method_and_the_papers_columns(finished):
    out, _ = finished
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["content alone", "style alone", "duolora"]
    assert list(rows[0])[:8] == ["method", "dino", "clip_i", "clip_t", "csd", "hmean", "hmean_lo", "hmean_hi"]
    results = json.loads((out / "results.json").read_text())
    assert results["provenance"]["suite"] == "folders"
    assert {score["pair"] for score in results["scores"]} == {"backpack_dog in oil_paint", "dog2 in oil_paint"}


def test_whole_recipes_have_a_table_of_their_own_that_counts_the_training(finished):
    out, _ = finished
    tables = {}
    for name in ("table", "recipes"):
        with (out / f"{name}.csv").open() as file:
            tables[name] = {row["method"]: row for row in csv.DictReader(file)}
    assert list(tables["recipes"]) == ["content alone", "style alone", "joint-training", "duolora recipe"]
    given, whole = tables["table"]["duolora"], tables["recipes"]["duolora recipe"]
    trained = [json.loads(path.read_text()) for path in (out / "loras").rglob("*.json")]
    assert int(given["trainable"]) == 0
    assert int(whole["trainable"]) == 2 * trained[0]["trainable"]
    assert float(whole["seconds"]) >= float(given["seconds"]) + 2 * min(record["seconds"] for record in trained) - 0.01
    assert whole["hmean"] == given["hmean"]


def test_scores_are_those_of_the_pictures_on_disk(finished, folders, dino_folder, clip_folder, csd_file):
    out, _ = finished
    scores = json.loads((out / "results.json").read_text())["scores"]
    entry = next(score for score in scores if score["method"] == "style alone" and score["pair"].startswith("backpack"))
    kept = sorted((out / "pictures" / "style-alone" / "-" / "backpack_dog-in-oil_paint" / "0").iterdir())
    drawn, subject, style = (
        [Image.open(path).convert("RGB") for path in paths]
        for paths in (
            kept,
            sorted((folders / "subjects" / "backpack_dog").glob("*.png")),
            sorted((folders / "styles" / "oil_paint").glob("*.png")),
        )
    )
    assert len(drawn) == 2
    dino, clip, csd = Dino(str(dino_folder), CPU), Clip(str(clip_folder), CPU), Csd(str(csd_file), CPU)
    assert entry["dino"] == pytest.approx((dino.pictures(drawn) @ dino.pictures(subject).T).mean().item(), abs=1e-5)
    assert entry["clip_i"] == pytest.approx((clip.pictures(drawn) @ clip.pictures(subject).T).mean().item(), abs=1e-5)
    assert entry["csd"] == pytest.approx((csd.pictures(drawn) @ csd.pictures(style).T).mean().item(), abs=1e-5)
    text = clip.texts(["a backpack in oil paint style"])
    assert entry["clip_t"] == pytest.approx((clip.pictures(drawn) @ text.T).mean().item(), abs=1e-5)


def test_a_subjects_lora_serves_all_its_pairs_and_a_styles_too(finished):
    out, _ = finished
    trained = sorted(path.relative_to(out / "loras").as_posix() for path in (out / "loras").rglob("*.safetensors"))
    assert trained == [
        "0/styles/oil_paint.safetensors",
        "0/subjects/backpack_dog.safetensors",
        "0/subjects/dog2.safetensors",
    ]


def test_a_folder_of_results_is_not_mixed_with_another_run(finished, capsys):
    _, arguments = finished
    changed = [*arguments[: arguments.index("--lora-steps")], "--lora-steps", "2"]
    changed += arguments[arguments.index("--lora-steps") + 2 :]
    assert main(changed) == 1
    assert "begun with another content, style" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "folders"], "needs the PATH"),
        (["somewhere"], "needs the PATH"),
        (["--suite", "folders", "x", "--quick"], "--quick"),
        (["--seeds", "0"], "--seeds"),
        (["--pairs", "-1"], "--pairs"),
        (["--pictures", "17"], "--pictures"),
        (["--methods", "nonesuch"], "unknown methods: nonesuch"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message, tmp_path, capsys):
    assert main(["evaluate", "--out", str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err
