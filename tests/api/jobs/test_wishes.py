"""Every complaint about parameters points at the caller's own field."""

import json
from ipaddress import ip_network

import pytest

from api.errors import InvalidParameters
from api.jobs import wishes
from api.jobs.schemas import JobParams
from api.webhooks.signing import make_secret
from duolora.recipes import MERGE_RECIPES

BASES = {"tiny": "tiny", "sdxl": "/models/sdxl"}


def resolve(document):
    return wishes.resolve(wishes.parse(json.dumps(document)), BASES, "tiny")


def refusal(document):
    with pytest.raises(InvalidParameters) as caught:
        resolve(document)
    return {error.pointer: error for error in caught.value.errors}


def test_an_empty_wish_is_the_default_recipe():
    config = wishes.resolve(wishes.parse(""), BASES, "tiny")
    assert (config.recipe, config.base_model) == ("tiny", "tiny")
    assert resolve({"base_model": "sdxl"}).recipe == "sdxl"


def test_wishes_reach_every_part_they_speak_of():
    config = resolve(
        {
            "subject_class": "dog",
            "content_trigger": "abc",
            "style_trigger": "def",
            "style_captions": ["a tree"],
            "content_captions": ["", "an abc dog at sea"],
            "steps": {"content": 11, "style": 12, "merge": 13},
            "rank": 5,
            "resolution_px": 96,
            "seed": 7,
        }
    )
    assert (config.content.steps, config.style.steps, config.merge.steps) == (11, 12, 13)
    assert (config.content.rank, config.style.rank) == (5, 5)
    assert (config.content.resolution_px, config.style.resolution_px, config.preview.resolution_px) == (96, 96, 96)
    assert (config.content.seed, config.merge.seed, config.preview.seed) == (7, 7, 7)
    assert config.prompts.content == "a abc dog"
    assert config.prompts.style(0) == "a tree in def style"
    assert [config.prompts.content_picture(index) for index in range(3)] == [
        "a abc dog",
        "an abc dog at sea",
        "a abc dog",
    ]


@pytest.mark.parametrize(
    ("document", "pointer", "code"),
    [
        ({"rank": 0}, "/params/rank", "greater_than_equal"),
        ({"rank": -3}, "/params/rank", "greater_than_equal"),
        ({"rank": 10_000}, "/params/rank", "less_than_equal"),
        ({"rank": "8"}, "/params/rank", "int_type"),
        ({"rank": 8.5}, "/params/rank", "int_type"),
        ({"rank": True}, "/params/rank", "int_type"),
        ({"steps": {"content": 0}}, "/params/steps/content", "greater_than_equal"),
        ({"steps": {"merge": -1}}, "/params/steps/merge", "greater_than_equal"),
        ({"steps": {"style": 10**9}}, "/params/steps/style", "less_than_equal"),
        ({"steps": {"package": 3}}, "/params/steps/package", "extra_forbidden"),
        ({"resolution_px": 65}, "/params/resolution_px", "multiple_of"),
        ({"seed": -1}, "/params/seed", "greater_than_equal"),
        ({"seed": 2**63}, "/params/seed", "less_than"),
        ({"learning_rte": 1}, "/params/learning_rte", "extra_forbidden"),
        ({"a/b~c": 1}, "/params/a~1b~0c", "extra_forbidden"),
        ({"kind": "paint"}, "/params/kind", "enum"),
        ({"loras": [{}]}, "/params/loras/0/lora_id", "missing"),
        ({"slider": 10}, "/params/slider", "less_than_equal"),
        ({"slider": -1}, "/params/slider", "greater_than_equal"),
        ({"name": ""}, "/params/name", "string_too_short"),
        ({"name": "x" * 81}, "/params/name", "string_too_long"),
        ({"recipe": "magic"}, "/params/recipe", "unknown"),
        ({"merge_recipe": "magic"}, "/params/merge_recipe", "unknown"),
        ({"base_model": "../etc/passwd"}, "/params/base_model", "unknown"),
        ({"subject_class": ""}, "/params/subject_class", "string_too_short"),
        ({"subject_class": "a,b"}, "/params/subject_class", "string_pattern_mismatch"),
        ({"subject_class": "a\u0000b"}, "/params/subject_class", "string_pattern_mismatch"),
        ({"style_captions": ["x"] * 21}, "/params/style_captions", "too_long"),
        ({"style_captions": ["x", ""]}, "/params/style_captions/1", "string_too_short"),
        ({"content_captions": ["sbu"] * 21}, "/params/content_captions", "too_long"),
        ({"content_captions": ["sbu", "a\nsbu"]}, "/params/content_captions/1", "string_pattern_mismatch"),
        ({"content_captions": ["a sbu", "a dog"]}, "/params/content_captions", "value_error"),
        ({"content_trigger": "same", "style_trigger": "same"}, "/params/style_trigger", "value_error"),
        ({"priority": 101}, "/params/priority", "less_than_equal"),
    ],
)
def test_a_bad_wish_is_refused_by_name(document, pointer, code):
    errors = refusal(document)
    assert list(errors) == [pointer]
    assert errors[pointer].code == code
    assert errors[pointer].detail


@pytest.mark.parametrize("text", ["{", "nonsense", '{"rank": }', "\u0000", '{"rank": NaN}', "[1]", "null", '"x"', "7"])
def test_what_is_not_a_json_object_is_refused(text):
    with pytest.raises(InvalidParameters) as caught:
        wishes.parse(text)
    assert [error.pointer for error in caught.value.errors] in (["/params"], ["/params/rank"])


def test_all_bad_wishes_are_told_at_once():
    assert set(refusal({"rank": 0, "seed": -1, "steps": {"content": 0, "merge": -1}})) == {
        "/params/rank",
        "/params/seed",
        "/params/steps/content",
        "/params/steps/merge",
    }


def test_an_unknown_key_is_answered_with_the_known_ones():
    assert "resolution_px" in refusal({"resolution": 64})["/params/resolution"].detail


@pytest.mark.parametrize("url", ["ftp://a.b/", "http://a.b/", "https://10.0.0.1/", "https://u:p@a.b/", "x"])
def test_a_webhook_url_that_can_never_work_is_refused(url):
    (error,) = wishes.check_webhook(JobParams(webhook_url=url), ())
    assert error.pointer == "/params/webhook_url"


def test_a_webhook_url_that_may_work_passes():
    assert wishes.check_webhook(JobParams(webhook_url="https://example.org/hook?x=1"), ()) == []
    assert wishes.check_webhook(JobParams(), ()) == []
    allowed = (ip_network("10.0.0.0/8"),)
    assert wishes.check_webhook(JobParams(webhook_url="http://10.0.0.1:8080/"), allowed) == []


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({"webhook_events": ["job.started", "job.eaten"]}, "/params/webhook_events/1"),
        ({"webhook_secret": "whsec_c2hvcnQ="}, "/params/webhook_secret"),
        ({"webhook_secret": "secret"}, "/params/webhook_secret"),
        ({"webhook_url": None, "webhook_secret": make_secret()}, "/params/webhook_secret"),
        ({"webhook_url": None, "webhook_events": ["job.started"]}, "/params/webhook_events"),
    ],
)
def test_what_is_wrong_about_a_webhook_is_named(wish, pointer):
    params = JobParams(**{"webhook_url": "https://example.org/"} | wish)
    assert [error.pointer for error in wishes.check_webhook(params, ())] == [pointer]


def test_a_merge_recipe_replaces_the_whole_merge_and_wishes_go_over_it():
    params = wishes.parse('{"merge_recipe": "paper", "steps": {"merge": 7}, "seed": 5}')
    merge = wishes.resolve(params, {"tiny": "tiny"}, "tiny").merge
    assert merge == MERGE_RECIPES["paper"].model_copy(update={"steps": 7, "seed": 5})
    assert wishes.resolve(wishes.parse("{}"), {"tiny": "tiny"}, "tiny").merge == MERGE_RECIPES["duolora"]


@pytest.mark.parametrize(
    ("document", "refused"),
    [
        ({"engine": "mock", "mock_outcome": "fail"}, []),
        ({"engine": "mock"}, []),
        ({"mock_outcome": "fail"}, ["needs_mock"]),
    ],
)
def test_only_a_mock_job_ends_as_one_likes(document, refused):
    assert [error.code for error in wishes.check_engine(wishes.parse(json.dumps(document)))] == refused
