"""What may share a folder of results: nothing whose LoRAs or scores another code or setting decided."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from duolora.config import Prompts
from duolora.errors import InvalidConfig
from duolora.evaluate import provenance
from duolora.evaluate.command import _begin
from duolora.evaluate.folder_suite import FolderPair, FolderStyle, FolderSubject, FolderSuite
from duolora.evaluate.metrics import Score
from duolora.evaluate.provenance import (
    PRESENTATION,
    SOURCES,
    Identity,
    digest_sources,
    folders_identity,
    identity,
    truth_identity,
)
from duolora.evaluate.score_book import Entry, ScoreBook
from duolora.recipes import MERGE_RECIPES, resolve

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = resolve("tiny", "pico", Prompts(subject_class="dog"))


def changed(one: Identity, other: Identity) -> tuple[set[str], set[str]]:
    """Names of what differs, of the LoRAs and of the scores."""
    return tuple(  # type: ignore[return-value]
        {name for name in before if before[name] != after[name]}
        for before, after in ((one.loras, other.loras), (one.scores, other.scores))
    )


def test_another_merge_makes_other_scores_of_the_same_loras(base):
    before = identity(base, CONFIG, truth_identity())
    after = identity(base, CONFIG.model_copy(update={"merge": MERGE_RECIPES["paper"]}), truth_identity())
    assert changed(before, after) == (set(), {"merge"})


def test_a_base_with_one_text_encoder_has_an_identity(sd15_base):
    before = identity(sd15_base, CONFIG, truth_identity())
    weight = next(sd15_base.component("text_encoder").parameters())
    kept = weight.detach().clone()
    weight.data.add_(1)
    try:
        assert changed(before, identity(sd15_base, CONFIG, truth_identity())) == ({"base_sha256"}, set())
    finally:
        weight.data.copy_(kept)


def test_code_and_priors_are_in_the_identity(base, tmp_path, monkeypatch):
    for path in [*SOURCES.rglob("*.py"), SOURCES / "method/measured_priors.json"]:
        copy = tmp_path / path.relative_to(SOURCES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert all((SOURCES / name).is_file() for name in PRESENTATION)
    monkeypatch.setattr(provenance, "SOURCES", tmp_path)
    seen = {}
    for name in ("nothing", "evaluate/report.py", "method/ziprank.py", "method/measured_priors.json", "train.py"):
        before = identity(base, CONFIG, truth_identity())
        if name != "nothing":
            with (tmp_path / name).open("a") as file:
                file.write("\n")
        seen[name] = changed(before, identity(base, CONFIG, truth_identity()))
    assert seen == {
        "nothing": (set(), set()),
        "evaluate/report.py": (set(), set()),
        "method/ziprank.py": (set(), {"code_sha256"}),
        "method/measured_priors.json": (set(), {"measured_priors_sha256"}),
        "train.py": ({"training_code_sha256"}, {"code_sha256"}),
    }


def test_a_source_file_that_moves_counts_as_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "SOURCES", tmp_path)
    (tmp_path / "one.py").write_text("x = 1\n")
    before = digest_sources([tmp_path / "one.py"])
    (tmp_path / "one.py").rename(tmp_path / "two.py")
    assert digest_sources([tmp_path / "two.py"]) != before


def test_prompts_and_the_number_of_pictures_decide_the_scores_of_folders(content_pictures, style_pictures):
    style = FolderStyle("ink", tuple(style_pictures), ())
    suite = FolderSuite((FolderPair(FolderSubject("dog", "dog", tuple(content_pictures)), style),), ("a", "b"))
    before = folders_identity(suite, {"dino": "x"}, 4)
    assert changed(before, folders_identity(suite, {"dino": "x"}, 2)) == (set(), {"pictures_per_prompt"})
    assert changed(before, folders_identity(replace(suite, templates=("a",)), {"dino": "x"}, 4)) == (
        set(),
        {"templates_sha256"},
    )
    other = FolderSuite((replace(suite.pairs[0], style=replace(style, captions=("a", "b", "c"))),), suite.templates)
    assert changed(before, folders_identity(other, {"dino": "x"}, 4)) == ({"words_sha256"}, set())


@pytest.fixture
def book(tmp_path: Path) -> ScoreBook[Entry]:
    score = Score(content=0.5, style=0.5, hmean=0.5, truth_distance=0.1, ground=None)
    book = ScoreBook(tmp_path / "scores.jsonl", Entry.from_record)
    book.add([Entry(name, "-", "pair", 0, score, score, 0, 0.0) for name in ("one", "two")])
    return book


def test_stale_scores_go_and_their_loras_stay(tmp_path, book):
    def begin(loras: str, scores: str, *, again: bool = False) -> list[str]:
        arguments = argparse.Namespace(out=tmp_path, again=again)
        _begin(arguments, Identity({"content": loras}, {"code_sha256": scores}), book, ["one"])
        return [entry.method for entry in ScoreBook(tmp_path / "scores.jsonl", Entry.from_record).entries()]

    assert begin("a", "a") == begin("a", "a") == ["one", "two"]
    assert begin("a", "a", again=True) == ["two"]
    with pytest.raises(InvalidConfig, match="another code_sha256; choose another --out, or --again"):
        begin("a", "b")
    with pytest.raises(InvalidConfig, match=r"another content; choose another --out$"):
        begin("b", "a", again=True)
    assert begin("a", "b", again=True) == []
    assert begin("a", "b") == []
    assert json.loads((tmp_path / "identity.json").read_text())["scores"] == {"code_sha256": "b"}
