"""What a job's report says of how alike its pictures are to those it was given."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from duolora.evaluate.likeness import Judge, among_themselves, embedded_judge, judge_for, likeness
from duolora.evaluate.metrics import harmonic_mean
from duolora.evaluate.perceptual import Csd, Dino
from duolora.images import list_pictures, open_pictures
from duolora.models.registry import load_base
from duolora.runtime import choose_runtime
from duolora.tiny.base import base_path, samples_path


@pytest.fixture(scope="module")
def given():
    return {side: open_pictures(list_pictures(samples_path() / side)) for side in ("content", "style")}


def test_the_subject_and_the_style_are_told_apart(given):
    found = likeness(embedded_judge(), {"subject": given["content"], "styled": given["style"]}, given)
    subject, styled = found["loras"]["subject"], found["loras"]["styled"]
    assert min(subject["content"], styled["style"]) > 0.8
    assert max(styled["content"], subject["style"]) < 0.4
    assert subject["hmean"] == pytest.approx(harmonic_mean([subject["content"], subject["style"]]))


def test_what_the_given_pictures_have_in_common_bounds_what_can_be_reached(given):
    found = likeness(embedded_judge(), {}, given)
    assert found["given"] == pytest.approx({"content": 1, "style": 1}, abs=0.15)


def test_one_picture_has_nothing_in_common_with_itself(given):
    alone = {side: pictures[:1] for side, pictures in given.items()}
    assert likeness(embedded_judge(), {}, alone)["given"] == {"content": None, "style": None}


def test_a_side_without_pictures_is_not_judged(given):
    found = likeness(embedded_judge(), {"style": given["style"]}, {"style": given["style"]})
    assert set(found["given"]) == {"style"}
    assert found["loras"]["style"]["content"] is None
    assert found["loras"]["style"]["hmean"] is None
    assert found["loras"]["style"]["style"] > 0.8


def test_pairs_of_a_picture_with_itself_do_not_count():
    rows_ME = functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    assert among_themselves(rows_ME) == pytest.approx((0 + 2 * 0.5**0.5) / 3)


def test_likenesses_are_means_over_all_pairs(given):
    embeddings = {size: torch.eye(3)[index : index + 1] for index, size in enumerate(((8, 8), (9, 9)))}

    def embed(pictures):
        return torch.cat([embeddings[picture.size] for picture in pictures])

    small, large = (given["content"][0].resize(size) for size in embeddings)
    found = likeness(Judge("by size", embed, None), {"drawn": [small, large]}, {"content": [small, small, large]})
    assert found["loras"]["drawn"]["content"] == pytest.approx(1 / 2)
    assert found["given"]["content"] == pytest.approx(1 / 3)


def test_the_embedded_base_has_its_evaluator(given):
    base = load_base("tiny", choose_runtime("cpu"))
    judge = judge_for(base, dino="not looked for", csd=None)
    assert judge is not None
    assert likeness(judge, {"drawn": given["content"]}, given) == likeness(
        embedded_judge(), {"drawn": given["content"]}, given
    )


@pytest.fixture
def other_base(tmp_path):
    copy = tmp_path / "base"
    copy.symlink_to(base_path())
    return load_base(str(copy), choose_runtime("cpu"))


def test_other_bases_are_judged_by_what_the_installation_has(other_base, dino_folder, csd_file, given):
    dino, csd = str(dino_folder), str(csd_file)
    assert judge_for(other_base, dino=None, csd=None) is None
    both = judge_for(other_base, dino=dino, csd=csd)
    assert both is not None
    assert both.name == "DINO and CSD"
    assert both.subject is not None
    assert both.style is not None
    cpu = torch.device("cpu")
    torch.testing.assert_close(both.subject(given["content"]), Dino(dino, cpu).pictures(given["content"]))
    torch.testing.assert_close(both.style(given["style"]), Csd(csd, cpu).pictures(given["style"]))
    subjects_only = judge_for(other_base, dino=dino, csd=None)
    assert subjects_only is not None
    assert (subjects_only.name, subjects_only.style) == ("DINO", None)
