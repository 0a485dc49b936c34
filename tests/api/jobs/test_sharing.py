"""What trainings must have in common to share passes."""

import pytest

from api.jobs.sharing import likeness
from duolora.config import LoraTrainConfig, Prompts
from tests.support.company import alone, together


def params(recipe=alone, **changes):
    config = recipe("tiny", Prompts(**changes.pop("words", {})))
    content = config.content.model_copy(update=changes)
    return config.model_copy(update={"content": content}).model_dump(mode="json")


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"words": {"subject_class": "cat", "content_trigger": "abc"}}], ids=["seed", "words"]
)
def test_seeds_and_words_may_differ(change):
    assert likeness("content_lora", params(**change)) == likeness("content_lora", params())


CHANGES = {
    "steps": 999,
    "rank": 77,
    "learning_rate": 0.05,
    "batch_size": 63,
    "resolution_px": 2048,
    "targets": "others",
    "snr_gamma": 9.0,
    "warmup_steps": 99,
    "flip": True,
    "company": 0.9,
    "preservation": {"weight": 0.5, "pictures": 2},
    "text_encoder": True,
}


def test_nothing_of_the_training_itself_is_forgotten_here():
    assert set(CHANGES) | {"seed"} == set(LoraTrainConfig.model_fields)


@pytest.mark.parametrize("name", CHANGES)
def test_the_training_itself_may_not(name):
    own = params()
    other = {**own, "content": {**own["content"], name: CHANGES[name]}}
    assert other != own
    assert likeness("content_lora", other) != likeness("content_lora", own)
    assert likeness("style_lora", other) == likeness("style_lora", own)
    assert likeness("loras", other) != likeness("loras", own)


def test_bases_and_sides_may_not():
    own = params()
    assert likeness("content_lora", {**own, "base_model": "sdxl"}) != likeness("content_lora", own)
    same = {**own, "style": own["content"]}
    assert likeness("content_lora", same) != likeness("style_lora", same)


def test_stages_that_train_nothing_share_nothing():
    assert [likeness(stage, params(together)) for stage in ("merge", "package")] == [None, None]
