"""What jobs put into the library, and take out again."""

import pytest

from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.jobs.models import Job
from api.jobs.repository import StoredArtifact
from api.loras.models import LoraFormat, LoraRole, LoraSource
from tests.api.factories import claim, expire_lease, fail, held, make_account, make_job, reap


def artifact(name, bytes_=7):
    return StoredArtifact(
        name=name, filename=f"{name}.x", key=f"key of {name}", sha256="ab" * 32, bytes=bytes_, content_type="x/y"
    )


def finish(sessions, claimed, *names):
    with transaction(sessions) as session:
        artifacts = [artifact(name) for name in names]
        repository.finish_stage(session, **held(claimed), artifacts=artifacts, timings={})


def test_every_lora_of_a_job_appears_when_its_stage_ends(sessions, library):
    account = make_account(sessions)
    job = make_job(sessions, account)
    for names in (
        ("content_lora", "content_lora_kohya"),
        ("style_lora", "style_lora_kohya"),
        ("merged_diffusers", "merged_kohya", "merge_report", "merge_plot"),
        ("preview", "report"),
    ):
        finish(sessions, claim(sessions), *names)
    rows = library.rows()
    assert [row.role for row in rows] == [LoraRole.CONTENT, LoraRole.STYLE, LoraRole.MERGED]
    for row in rows:
        assert (row.account_id, row.job_id, row.source, row.kept) == (account, job, LoraSource.JOB, False)
        assert [file.format for file in row.all_files] == [LoraFormat.DIFFUSERS, LoraFormat.KOHYA]
    assert rows[2].file("kohya").key == "key of merged_kohya"


def test_it_says_what_calls_it_and_what_it_was_trained_on(sessions, library):
    make_job(sessions, make_account(sessions))
    for names in (("content_lora",), ("style_lora",), ("merged_diffusers",)):
        finish(sessions, claim(sessions), *names)
    content, style, merged = library.rows()
    with sessions() as session:
        params = session.get(Job, content.job_id).params
    words = params["prompts"]
    assert (content.name, content.trigger) == (
        words["subject_class"],
        f"{words['content_trigger']} {words['subject_class']}",
    )
    assert style.name == style.trigger == f"{words['style_trigger']} style"
    assert merged.trigger == f"{content.trigger} in {style.trigger}"
    assert {row.base_model for row in (content, style, merged)} == {params["base_model"]}
    assert (content.rank, style.rank, merged.rank) == (params["content"]["rank"], params["style"]["rank"], None)


def test_a_job_with_a_name_gives_it_to_what_it_made(sessions, library):
    make_job(sessions, make_account(sessions), name="Tom in ink")
    finish(sessions, claim(sessions), "content_lora")
    assert [row.name for row in library.rows()] == ["Tom in ink (content)"]


def test_what_the_mock_engine_made_is_marked(caller, sessions, library):
    caller.submit(params={"engine": "mock"})
    claimed = claim(sessions)
    finish(sessions, claimed, "content_lora")
    assert [row.tags for row in library.rows()] == [["mock"]]


def test_the_mark_is_no_tag_and_no_real_job_takes_what_has_it(caller, sessions, library, train):
    """Also if it is kept, and its owner has taken the tag away or put it on another one."""

    def draw(lora, **wishes):
        params = {"kind": "generate", "prompts": ["a cat"], "loras": [{"lora_id": lora["id"]}], **wishes}
        return caller.submit([], [], params=params)

    for wishes, tags in (({"engine": "mock"}, []), ({}, ["mock"])):
        caller.submit(params={"subject_class": "cat", **wishes})
        train(claim(sessions))
        fail(sessions, claim(sessions))
        [made, *_] = caller.get("/loras").json()["items"]
        kept = caller.request("PATCH", made["urls"]["self"], json={"tags": tags, "kept": True})
        assert (kept.status_code, kept.json()["tags"]) == (200, tags)
    real, mock = caller.get("/loras").json()["items"]
    refused = draw(mock)
    assert refused.status_code == 422
    assert [(error["pointer"], error["code"]) for error in refused.json()["errors"]] == [
        ("/params/loras/0/lora_id", "is_mock")
    ]
    assert draw(mock, engine="mock").status_code == 202
    assert draw(real).status_code == 202
    assert [row.mock for row in library.rows()] == [True, False]


def test_trained_together_both_appear(sessions, library):
    make_job(sessions, make_account(sessions))
    names = ("content_lora", "content_lora_kohya", "style_lora", "style_lora_kohya")
    finish(sessions, claim(sessions), *names)
    assert [row.role for row in library.rows()] == [LoraRole.CONTENT, LoraRole.STYLE]


def test_whoever_has_lost_the_stage_puts_nothing_in(sessions, library):
    make_job(sessions, make_account(sessions))
    claimed = claim(sessions)
    expire_lease(sessions, claimed)
    reap(sessions)
    with pytest.raises(LeaseLost):
        finish(sessions, claimed, "content_lora")
    assert library.rows() == []


def test_it_goes_with_its_job_on_request(caller, made, library):
    caller.request("DELETE", f"/jobs/{made['job_id']}")
    assert caller.get("/loras").json()["items"] == library.rows() == []
    assert caller.get(made["urls"]["self"]).status_code == 404


def test_it_goes_with_its_job_before_the_objects_do(serve, caller, made, api_settings, library):
    """So that a store that does not answer, or does so half way, leaves no row that points to nothing."""
    dead = api_settings.store.model_copy(update={"endpoint": "http://127.0.0.1:1"})
    away = type(caller)(serve(store=dead), caller.key)
    assert away.request("DELETE", f"/jobs/{made['job_id']}").status_code == 202
    assert caller.get("/loras").json()["items"] == library.rows() == []


def test_only_its_jobs_go(caller, made, sessions, train):
    caller.submit()
    train(claim(sessions))
    caller.request("DELETE", f"/jobs/{made['job_id']}")
    [left] = caller.get("/loras").json()["items"]
    assert left["job_id"] != made["job_id"]
