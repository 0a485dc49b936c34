"""What makes two results the same."""

import pytest

from api.jobs.repository import InputImage, find_reusable, reuse_key
from duolora.config import Prompts
from duolora.recipes import tiny
from tests.api.factories import make_account

CONFIG = tiny("tiny", Prompts(subject_class="dog")).model_dump(mode="json")


def image(side, ordinal, sha256):
    return InputImage(side=side, ordinal=ordinal, key="k", sha256=sha256, content_type="image/png")


IMAGES = [image("content", 0, "aa"), image("content", 1, "bb"), image("style", 0, "cc")]


def key(stage="content_lora", images=IMAGES, revision="r1", engine="1", **changes):
    return reuse_key(stage, CONFIG | changes, images, revision, engine)


SIDE = CONFIG["content"]
DIFFERENT = {
    "another stage": {"stage": "style_lora"},
    "both sides": {"stage": "loras"},
    "another picture": {"images": [image("content", 0, "ab"), *IMAGES[1:]]},
    "another order": {"images": [IMAGES[1], IMAGES[0], IMAGES[2]]},
    "another base": {"base_model": "sdxl"},
    "other files of the base": {"revision": "r2"},
    "another engine": {"engine": "2"},
    "other words": {"prompts": CONFIG["prompts"] | {"subject_class": "cat"}},
    "another training": {"content": SIDE | {"seed": 7}},
}
SAME = {
    "another side's picture": {"images": [*IMAGES[:2], image("style", 0, "dd")]},
    "another side's training": {"style": CONFIG["style"] | {"seed": 7}},
    "another merge": {"merge": CONFIG["merge"] | {"seed": 7}},
    "another preview": {"preview": CONFIG["preview"] | {"seed": 7}},
    "another recipe's name": {"recipe": "mine"},
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_result_has_another_key(what):
    assert key(**DIFFERENT[what]) not in {None, key()}


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_matter_changes_nothing(what):
    assert key(**SAME[what]) == key()


def test_the_preview_matters_where_it_draws_class_pictures():
    drawn = {"content": SIDE | {"preservation": {"weight": 1.0, "pictures": 2}}}
    assert key(**drawn) != key(**drawn, preview=CONFIG["preview"] | {"seed": 7})


@pytest.mark.parametrize("unknown", [{"stage": "merge"}, {"revision": None}, {"engine": None}])
def test_without_knowing_everything_there_is_no_key(unknown):
    assert key(**unknown) is None


def test_an_empty_library_has_nothing(sessions):
    account = make_account(sessions)
    with sessions() as session:
        assert find_reusable(session, account_id=account, reuse_key="x") is None
