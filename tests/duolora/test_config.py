from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from duolora.config import (
    MAX_IMAGES_PER_SIDE,
    GenerateConfig,
    LayerPrior,
    LoraTrainConfig,
    MaskStart,
    MergeConfig,
    MergeMethod,
    PersonalizeConfig,
    Prompts,
)
from duolora.recipes import tiny

LORA = {"steps": 10, "rank": 4, "learning_rate": 1e-3}


def refused_fields(model: type[BaseModel], document: dict[str, Any]) -> set[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    return {".".join(map(str, fault["loc"])) for fault in caught.value.errors()}


def test_leading_ranks_without_a_prior_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValidationError, match="give prior resolution, or start ones"):
        MergeConfig(start=MaskStart.LEADING, prior=LayerPrior.NONE)

    for start in set(MaskStart) - {MaskStart.LEADING}:
        assert MergeConfig(start=start, prior=LayerPrior.NONE).start is start
    assert MergeConfig(method=MergeMethod.RELEASE, prior=LayerPrior.NONE).prior is LayerPrior.NONE  # has its own


@pytest.mark.parametrize(
    ("model", "field", "least", "most", "below", "above"),
    [
        (LoraTrainConfig, "steps", 1, 20_000, 0, 20_001),
        (LoraTrainConfig, "rank", 1, 256, 0, 257),
        (LoraTrainConfig, "learning_rate", 1e-9, 0.1, 0, 0.11),
        (LoraTrainConfig, "batch_size", 1, 64, 0, 65),
        (LoraTrainConfig, "resolution_px", 64, 2048, 32, 2080),
        (LoraTrainConfig, "company", 0, 1, -0.1, 1.1),
        (LoraTrainConfig, "seed", 0, 2**63 - 1, -1, 2**63),
        (MergeConfig, "steps", 0, 5_000, -1, 5_001),
        (MergeConfig, "learning_rate", 1e-9, 1, 0, 1.1),
        (MergeConfig, "batch_size", 1, 64, 0, 65),
        (MergeConfig, "bank_size", 1, 1024, 0, 1025),
        (MergeConfig, "prior_start", 0, 1, -0.1, 1.1),
        (MergeConfig, "prune_below", 0, 0.999, -0.1, 1),
        (GenerateConfig, "steps", 1, 200, 0, 201),
        (GenerateConfig, "guidance_scale", 0, 30, -1, 31),
        (GenerateConfig, "images", 1, 16, 0, 17),
    ],
)
def test_bounds_are_inclusive_and_name_the_field_beyond_them(
    *, model: type[BaseModel], field: str, least: float, most: float, below: float, above: float
) -> None:
    document = LORA if model is LoraTrainConfig else {}

    for value in (least, most):
        assert getattr(model.model_validate(document | {field: value}), field) == value
    for value in (below, above):
        assert refused_fields(model, document | {field: value}) == {field}


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (LoraTrainConfig, "resolution_px", 100),  # not a multiple of 32
        (LoraTrainConfig, "learning_rate", float("nan")),
        (LoraTrainConfig, "snr_gamma", 0),
        (LoraTrainConfig, "warmup_steps", -1),
        (LoraTrainConfig, "targets", "everything"),
        (LoraTrainConfig, "steps", 1.5),
        (LoraTrainConfig, "steps", None),
        (MergeConfig, "prior", "guess"),
        (MergeConfig, "prior", "none"),  # the default start keeps what the prior says
        (MergeConfig, "prior_weight", -0.1),
        (MergeConfig, "constyle_weight", -0.1),
        (MergeConfig, "constyle_every", 0),
    ],
)
def test_values_without_meaning_are_refused(model: type[BaseModel], field: str, value: object) -> None:
    assert refused_fields(model, (LORA if model is LoraTrainConfig else {}) | {field: value}) == {field}


@pytest.mark.parametrize("model", [LoraTrainConfig, MergeConfig, GenerateConfig, Prompts])
def test_unknown_keys_are_refused(model: type[BaseModel]) -> None:
    document = LORA if model is LoraTrainConfig else {}

    assert refused_fields(model, document | {"rnak": 3}) == {"rnak"}


def test_unknown_keys_are_refused_at_any_depth() -> None:
    document = tiny("tiny", Prompts()).model_dump(mode="json")
    document["merge"]["colour"] = "red"

    assert refused_fields(PersonalizeConfig, document) == {"merge.colour"}


def in_company(content: float, style: float, **of_style: Any) -> dict[str, Any]:
    """A whole configuration as JSON, whose sides have these shares of company."""
    document = tiny("tiny", Prompts()).model_dump(mode="json")
    document["content"] |= {"company": content}
    document["style"] |= {"company": style, **of_style}
    return document


@pytest.mark.parametrize(("content", "style", "together"), [(0, 0, False), (0.5, 0.5, True), (1, 0.25, True)])
def test_sides_with_company_are_trained_together(*, content: float, style: float, together: bool) -> None:
    assert PersonalizeConfig.model_validate(in_company(content, style)).trains_together is together


@pytest.mark.parametrize(("content", "style"), [(0.5, 0), (0, 0.5)])
def test_company_of_one_side_only_is_refused(content: float, style: float) -> None:
    with pytest.raises(ValidationError, match=r"content\.company and style\.company must both be above 0"):
        PersonalizeConfig.model_validate(in_company(content, style))


def test_sides_of_two_resolutions_cannot_keep_each_other_company() -> None:
    assert PersonalizeConfig.model_validate(in_company(0, 0, resolution_px=96))
    with pytest.raises(ValidationError, match="the same resolution_px"):
        PersonalizeConfig.model_validate(in_company(0.5, 0.5, resolution_px=96))


def test_configurations_stored_before_there_was_company_train_each_side_by_itself() -> None:
    document = in_company(0, 0)
    for side in ("content", "style"):
        del document[side]["company"]

    assert not PersonalizeConfig.model_validate(document).trains_together


def test_nothing_is_preserved_unless_asked_for() -> None:
    document = tiny("tiny", Prompts()).model_dump(mode="json")
    for side in ("content", "style"):
        del document[side]["preservation"]  # as it was stored before there was any

    assert PersonalizeConfig.model_validate(document).content.preservation.weight == 0
    assert refused_fields(LoraTrainConfig, {**LORA, "preservation": {"weight": -1, "pictures": 0}}) == {
        "preservation.weight",
        "preservation.pictures",
    }


def test_configurations_are_immutable() -> None:
    settings = LoraTrainConfig(**LORA)

    with pytest.raises(ValidationError, match="frozen"):
        settings.rank = 5


@pytest.mark.parametrize("style", ["sbu", "SBU", " sbu "])
def test_equal_triggers_are_refused_whatever_their_case(style: str) -> None:
    with pytest.raises(ValidationError, match="must differ"):
        Prompts(content_trigger="sbu", style_trigger=style)


@pytest.mark.parametrize("caption", ["a dog", "a sbus", "a subu dog"])
def test_caption_that_does_not_call_the_subject_is_refused(caption: str) -> None:
    with pytest.raises(ValidationError, match=r"caption 1, .* lacks the word 'sbu' \(content_trigger\)"):
        Prompts(content_captions=("a sbu dog", caption))


@pytest.mark.parametrize("caption", ["", "  ", "sbu", "A SBU, asleep", "one sbu's hat"])
def test_caption_that_calls_the_subject_or_none_is_taken(caption: str) -> None:
    assert Prompts(content_captions=(caption,)).content_picture(0) == (caption.strip() or "a sbu subject")


@pytest.mark.parametrize("word", ["", "   ", "a,b", "a\nb", "a\x00b", "x" * 41])
@pytest.mark.parametrize("field", ["subject_class", "content_trigger", "style_trigger"])
def test_words_that_would_break_a_caption_are_refused(field: str, word: str) -> None:
    assert refused_fields(Prompts, {field: word}) == {field}


@pytest.mark.parametrize("caption", ["", "a\nb", "x" * 201])
def test_captions_that_would_break_a_prompt_are_refused(caption: str) -> None:
    assert refused_fields(Prompts, {"style_captions": ["a dog", caption]}) == {"style_captions.1"}


def test_no_more_captions_than_pictures_can_be() -> None:
    assert refused_fields(Prompts, {"style_captions": ["a"] * (MAX_IMAGES_PER_SIDE + 1)}) == {"style_captions"}


def test_captions_are_built_from_the_words() -> None:
    prompts = Prompts(
        subject_class=" dog ", content_trigger="sbu", style_trigger="szn", style_captions=("a bicycle", "two ants")
    )

    assert prompts.content == "a sbu dog"
    assert [prompts.style(index) for index in range(3)] == [
        "a bicycle in szn style",
        "two ants in szn style",
        "a picture in szn style",  # pictures without a caption of their own
    ]
    assert prompts.joint == "a sbu dog in szn style"
    assert prompts.style_of_class == "a dog in szn style"
    assert Prompts(subject_class="Ant").style_of_class == "an Ant in szn style"


def test_stored_json_gives_the_same_configuration_back() -> None:
    settings = tiny("tiny", Prompts(subject_class="dog", style_captions=("a bicycle",)))

    assert PersonalizeConfig.model_validate_json(settings.model_dump_json()) == settings


def test_company_without_a_single_sample_is_refused() -> None:
    with pytest.raises(ValidationError, match="no sample at all"):
        LoraTrainConfig(steps=1, rank=1, learning_rate=1e-3, batch_size=1, company=0.5)
    assert LoraTrainConfig(steps=1, rank=1, learning_rate=1e-3, batch_size=2, company=0.5).company == 0.5
