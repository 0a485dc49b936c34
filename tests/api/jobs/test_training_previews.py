"""Files that are published before their stage ends."""

import pytest
from sqlalchemy import select

from api.accounts.models import Account
from api.db import transaction
from api.errors import LeaseLost
from api.jobs import repository
from api.jobs.models import Artifact
from api.jobs.repository import StoredArtifact
from tests.api.factories import claim, held, png
from tests.support.company import alone, offer_as_tiny


@pytest.fixture(autouse=True)
def a_stage_for_each_lora(monkeypatch):
    offer_as_tiny(monkeypatch, alone)


@pytest.fixture
def job(caller):
    params = {"kind": "train", "steps": {"content": 40}, "preview_every": 10}
    answer = caller.submit([png()], [], params=params)
    assert answer.status_code == 202, answer.text
    return answer.json()


def picture(step, attempt=1):
    name = f"training_content_{step:06d}"
    return StoredArtifact(
        name=name, filename=f"{name}.png", key=f"k/{attempt}/{name}", sha256="0" * 64, bytes=7, content_type="image/png"
    )


def publish(sessions, stage, *artifacts):
    with transaction(sessions) as session:
        repository.publish_early(session, **held(stage), artifacts=artifacts)


def finish(sessions, stage, *artifacts):
    with transaction(sessions) as session:
        repository.finish_stage(session, **held(stage), artifacts=artifacts, timings={})


def test_they_are_seen_while_the_job_runs(caller, sessions, job):
    path = f"/jobs/{job['id']}"
    assert job["previews"] == []
    assert job["params"]["preview_every"] == 10
    stage = claim(sessions)
    tags = [caller.get(path).headers["etag"]]
    for step in (10, 20):
        publish(sessions, stage, picture(step))
        tags.append(caller.get(path).headers["etag"])
    seen = caller.get(path, headers={"If-None-Match": tags[-1]})
    assert seen.status_code == 304
    assert len(set(tags)) == 3
    document = caller.get(path).json()
    assert [each["name"] for each in document["previews"]] == ["training_content_000010", "training_content_000020"]
    assert document["previews"][0]["url"].startswith("http")
    assert document["result"] is None


def test_they_are_published_once_whatever_attempts_and_the_end_say(caller, sessions, job):
    first = claim(sessions)
    publish(sessions, first, picture(10))
    publish(sessions, first, picture(10))
    with transaction(sessions) as session:
        repository.release_stage(session, **held(first))
    second = claim(sessions)
    publish(sessions, second, picture(10, attempt=2), picture(20, attempt=2))
    finish(sessions, second, picture(10, attempt=2), picture(20, attempt=2), picture(30, attempt=2))
    with sessions() as session:
        rows = session.execute(select(Artifact.name, Artifact.attempt).order_by(Artifact.name)).all()
        stored = session.scalars(select(Account)).one().stored_bytes
    assert [tuple(row) for row in rows] == [
        ("training_content_000010", 1),
        ("training_content_000020", 2),
        ("training_content_000030", 2),
    ]
    assert stored == sum(image["bytes"] for image in job["images"]) + 3 * 7
    finish(sessions, claim(sessions))
    document = caller.get(f"/jobs/{job['id']}").json()
    assert document["state"] == "succeeded"
    assert document["previews"] == document["result"]["artifacts"]


def test_a_worker_that_lost_its_stage_publishes_nothing(sessions, job):
    stage = claim(sessions)
    with transaction(sessions) as session:
        repository.release_stage(session, **held(stage))
    with pytest.raises(LeaseLost):
        publish(sessions, stage, picture(10))
    with sessions() as session:
        assert session.scalars(select(Artifact)).all() == []


def test_more_than_anybody_looks_at_are_refused_with_what_may_be_asked_for(caller):
    answer = caller.submit([png()], [png()], params={"steps": {"content": 400}, "preview_every": 5})
    [error] = answer.json()["errors"]
    assert error["pointer"] == "/params/preview_every"
    assert "every 10 steps or more" in error["detail"]


def test_a_training_that_is_shown_shares_no_pass_and_no_result_with_one_that_is_not(caller, sessions, job):
    shown = claim(sessions)
    caller.submit([png()], [], params={"kind": "train", "steps": {"content": 40}})
    plain = claim(sessions)
    keys = {repository.reuse_key(stage.name, stage.params, stage.images, "any", "any") for stage in (shown, plain)}
    assert len(keys) == 2
    assert repository.likeness(shown.name, shown.params) is None
    assert repository.likeness(plain.name, plain.params) is not None
