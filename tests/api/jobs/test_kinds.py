"""What a kind has no use for is refused by name; what it needs comes from the recipe, the wishes and the LoRAs."""

import json

import pytest

from api.errors import InvalidParameters
from api.identifiers import uuid7
from api.jobs import kinds, wishes
from api.jobs.ingredients import Ingredient
from api.jobs.models import LoraUse
from api.jobs.plan import JobKind
from api.loras.models import LoraFile, LoraFormat
from duolora.config import PersonalizeConfig
from duolora.job_configs import GenerateJobConfig, MergeJobConfig, TrainJobConfig, read_config

BASES = {"tiny": "tiny", "sdxl": "/models/sdxl"}
ID = str(uuid7())
NEEDED = {
    "personalize": {},
    "train": {},
    "merge": {"content_lora_id": ID, "style_lora_id": ID},
    "generate": {"prompts": ["a dog"]},
}
BOTH = {"content": 2, "style": 1}
NONE = {"content": 0, "style": 0}


def lora(role, **known):
    file = LoraFile(format=LoraFormat.DIFFUSERS, key="k", filename="f", sha256="0" * 64, bytes=1)
    fields = {"ordinal": 0, "strength": 1.0, "lora_id": uuid7(), "name": "x", "base_model": None, "trigger": None}
    return Ingredient(role=LoraUse(role), pointer=f"/params/{role}_lora_id", file=file, **fields | known)


def resolve(kind, pictures=BOTH, ingredients=(), **fields):
    params = wishes.parse(json.dumps({"kind": kind, **NEEDED[kind], **fields}))
    return kinds.resolve(params, BASES, "tiny", pictures=pictures, ingredients=ingredients)


def refused(*arguments, **fields):
    with pytest.raises(InvalidParameters) as caught:
        resolve(*arguments, **fields)
    return {error.pointer: error for error in caught.value.errors}


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("personalize", PersonalizeConfig),
        ("train", TrainJobConfig),
        ("merge", MergeJobConfig),
        ("generate", GenerateJobConfig),
    ],
)
def test_each_kind_has_a_configuration_that_is_read_again_as_it_was(kind, shape):
    config = resolve(kind)
    assert type(config) is shape
    assert read_config(json.loads(config.model_dump_json())) == config


def test_the_stored_configuration_of_a_personalize_job_is_what_it_was_before_there_were_kinds():
    document = resolve("personalize").model_dump(mode="json")
    assert list(document) == [
        "schema_version",
        "recipe",
        "base_model",
        "prompts",
        "content",
        "style",
        "merge",
        "preview",
    ]
    assert resolve("personalize", slider=3).model_dump(mode="json")["slider"] == 3


SOME = {
    "merge_recipe": "duolora",
    "subject_class": "dog",
    "content_trigger": "abc",
    "style_trigger": "abc",
    "style_captions": [],
    "content_captions": [],
    "rank": 2,
    "slider": 3,
    "preview_every": 50,
    "content_lora_id": ID,
    "style_lora_id": ID,
    "loras": [],
    "prompts": ["a dog"],
    "images_per_prompt": 1,
    "guidance_scale": 2.0,
    "steps/content": 1,
    "steps/style": 1,
    "steps/merge": 1,
    "steps/sampling": 1,
}


def test_every_field_that_not_all_kinds_have_is_tried_below():
    assert SOME.keys() == kinds.OF_KINDS.keys()


@pytest.mark.parametrize("kind", list(JobKind))
@pytest.mark.parametrize("field", SOME)
def test_a_field_is_taken_by_its_kinds_and_refused_by_the_others(kind, field):
    first, _, second = field.partition("/")
    fields = {first: {second: SOME[field]} if second else SOME[field]}
    if kind in kinds.OF_KINDS[field]:
        resolve(kind, **fields)
        return
    [(pointer, error)] = refused(kind, **fields).items()
    assert (pointer, error.code) == (f"/params/{field}", "not_of_kind")
    assert kind in error.detail
    assert second or first in error.detail


@pytest.mark.parametrize("kind", ["merge", "generate"])
def test_what_a_kind_needs_is_asked_for(kind):
    errors = refused(kind, **dict.fromkeys(NEEDED[kind]))
    assert set(errors) == {f"/params/{field}" for field in NEEDED[kind]}
    assert {error.code for error in errors.values()} == {"missing"}


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"prompts": []}, "/params/prompts"),
        ({"prompts": ["a", ""]}, "/params/prompts/1"),
        ({"prompts": ["a\nb"]}, "/params/prompts/0"),
        ({"prompts": ["a"] * 17}, "/params/prompts"),
        ({"prompts": ["a"] * 16, "images_per_prompt": 5}, "/params/prompts"),
        ({"images_per_prompt": 17}, "/params/images_per_prompt"),
        ({"steps": {"sampling": 0}}, "/params/steps/sampling"),
        ({"guidance_scale": 31}, "/params/guidance_scale"),
        ({"loras": [{"lora_id": ID, "strength": 1}, {"lora_id": ID, "strength": 5}]}, "/params/loras/1/strength"),
        ({"loras": [{"lora_id": ID}] * 5}, "/params/loras"),
        ({"resolution_px": 65}, "/params/resolution_px"),
    ],
)
def test_what_is_out_of_bounds_of_a_generate_job_is_named(fields, pointer):
    assert list(refused("generate", **fields)) == [pointer]


def test_wishes_reach_the_sampling():
    config = resolve(
        "generate",
        prompts=["a dog", "a cat"],
        loras=[{"lora_id": ID, "strength": 0.5}],
        images_per_prompt=3,
        guidance_scale=7,
        steps={"sampling": 9},
        resolution_px=96,
        seed=4,
    )
    assert config.prompts == ("a dog", "a cat")
    assert config.strengths == (0.5,)
    sampling = config.sampling
    assert (sampling.images, sampling.guidance_scale, sampling.steps, sampling.resolution_px) == (3, 7.0, 9, 96)
    assert sampling.seed == 4


@pytest.mark.parametrize(
    ("pictures", "sides"),
    [
        ({"content": 2, "style": 0}, ("content",)),
        ({"content": 0, "style": 1}, ("style",)),
        (BOTH, ("content", "style")),
    ],
)
def test_a_training_is_of_the_sides_that_have_pictures(pictures, sides):
    config = resolve("train", pictures, steps={"content": 3, "style": 4}, rank=2)
    assert config.sides == sides
    assert {config.of_side(side).steps for side in sides} == {{"content": 3, "style": 4}[side] for side in sides}


@pytest.mark.parametrize(
    ("content", "style", "joint"),
    [
        ("a abc dog", "in inky style", "a abc dog in inky style"),
        ("an abc tea pot", "in old oil style", "a abc tea pot in old oil style"),
        ("ohwx man", "wtrcl", "a ohwx man in wtrcl style"),
        ("ohwx", None, "a ohwx subject in szn style"),
        (None, None, "a sbu subject in szn style"),
        ("a abc dog", "in ABC style", "a abc dog in szn style"),
        ("x" * 90, "a, b", "a sbu subject in szn style"),
    ],
)
def test_a_merge_calls_what_its_loras_say_they_are_called_by(content, style, joint):
    loras = [lora("content", trigger=content), lora("style", trigger=style)]
    assert resolve("merge", NONE, loras).prompts.joint == joint


def test_the_callers_words_go_before_those_of_the_loras():
    loras = [lora("content", trigger="a abc dog"), lora("style", trigger="in inky style")]
    assert resolve("merge", NONE, loras, subject_class="cat").prompts.joint == "a abc cat in inky style"


def test_a_job_with_loras_takes_their_base_and_refuses_those_of_another():
    known, unsaid = lora("content", base_model="sdxl"), lora("style")
    assert resolve("merge", NONE, [known, unsaid]).base_model == "sdxl"
    assert resolve("merge", NONE, [unsaid, unsaid]).base_model == "tiny"
    assert refused("merge", NONE, [known, unsaid], base_model="tiny").keys() == {"/params/content_lora_id"}
    foreign = lora("style", base_model="unheard-of")
    assert refused("merge", NONE, [known, foreign]).keys() == {"/params/content_lora_id", "/params/style_lora_id"}


def wrong(kind, pictures, **fields):
    params = wishes.parse(json.dumps({"kind": kind, **NEEDED[kind], **fields}))
    config = kinds.resolve(params, BASES, "tiny", pictures=pictures)
    return {error.pointer: error for error in kinds.check_pictures(params, config, pictures, "{side}_images")}


@pytest.mark.parametrize(
    ("kind", "pictures", "pointers"),
    [
        ("personalize", BOTH, []),
        ("personalize", {"content": 1, "style": 0}, ["/style_images"]),
        ("personalize", {"content": 21, "style": 1}, ["/content_images"]),
        ("train", BOTH, []),
        ("train", {"content": 0, "style": 20}, []),
        ("train", NONE, ["/content_images"]),
        ("train", {"content": 0, "style": 21}, ["/style_images"]),
        ("merge", NONE, []),
        ("merge", {"content": 1, "style": 0}, ["/content_images"]),
        ("generate", NONE, []),
        ("generate", {"content": 0, "style": 3}, ["/style_images"]),
    ],
)
def test_a_kind_takes_the_pictures_that_it_needs(kind, pictures, pointers):
    assert list(wrong(kind, pictures)) == pointers


def test_a_merge_that_learns_from_pictures_asks_for_them_and_names_what_wants_them():
    assert not wrong("merge", BOTH, merge_recipe="paper")
    errors = wrong("merge", {"content": 0, "style": 2}, merge_recipe="paper")
    assert list(errors) == ["/content_images"]
    assert "merge_recipe paper" in errors["/content_images"].detail
    assert "merge_recipe duolora" in errors["/content_images"].detail


def test_steps_of_a_side_without_pictures_are_refused():
    assert list(wrong("train", {"content": 2, "style": 0}, steps={"content": 5, "style": 5})) == ["/params/steps/style"]
