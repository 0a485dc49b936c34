"""Jobs of every kind over HTTP: what is stored of them, tried again and deleted; nothing of those refused."""

import hashlib
import json

import pytest
from sqlalchemy import func, select

from api.accounts.models import Account
from api.accounts.scopes import USUAL, Scope
from api.accounts.service import issue_key
from api.db import transaction
from api.jobs.models import Job, JobLora, Stage
from api.loras.models import LoraFile, LoraFormat
from tests.api.factories import Caller, claim, fail, make_account, make_lora, png
from tests.api.jobs.test_routes import problem
from tests.support.company import alone, offer_as_tiny


@pytest.fixture(autouse=True)
def a_stage_for_each_lora(monkeypatch):
    offer_as_tiny(monkeypatch, alone)


@pytest.fixture
def lora(sessions, store, caller):
    """Put a LoRA into the account's library."""

    def make(name, **fields):
        data = f"the bytes of {name}".encode()
        sha256, key = hashlib.sha256(data).hexdigest(), f"library/{name}"
        store.put_bytes(key, data, "application/octet-stream")
        file = LoraFile(format=LoraFormat.KOHYA, key=key, filename=f"{name}.x", sha256=sha256, bytes=len(data))
        account_id = fields.pop("account_id", None) or make_account(sessions, caller.key.account)
        return str(make_lora(sessions, account_id, name=name, files=[file.to_json()], **fields))

    return make


def submit(caller, content=(), style=(), **params):
    return caller.submit(list(content), list(style), params=params)


def stored_bytes(sessions, caller):
    account_id = make_account(sessions, caller.key.account)
    with sessions() as session:
        return session.get_one(Account, account_id).stored_bytes


def of_jobs(store, part="/jobs/"):
    everything = store.keys()
    return [key for key in everything if part in key]


def refused(answer):
    assert answer.status_code == 422, answer.text
    return {error["pointer"]: error["code"] for error in answer.json()["errors"]}


def test_a_merge_has_its_own_copies_of_the_files(caller, sessions, store, lora):
    ids = {side: lora(side, base_model="tiny", trigger=f"in {side} style") for side in ("content", "style")}

    answer = submit(caller, kind="merge", name="both", slider=3, **{f"{side}_lora_id": ids[side] for side in ids})

    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["kind"], job["name"], job["images"]) == ("merge", "both", [])
    assert [stage["name"] for stage in job["stages"]] == ["merge", "package"]
    assert job["params"]["slider"] == 3
    assert job["params"]["prompts"]["style_trigger"] == "style"
    assert [(each["role"], each["lora_id"], each["name"]) for each in job["loras"]] == [
        ("content", ids["content"], "content"),
        ("style", ids["style"], "style"),
    ]
    with sessions() as session:
        rows = session.scalars(select(JobLora).order_by(JobLora.role)).all()
    assert [store.get_bytes(row.key) for row in rows] == [b"the bytes of content", b"the bytes of style"]
    assert all(f"/jobs/{job['id']}/inputs/loras/" in row.key for row in rows)
    assert stored_bytes(sessions, caller) == sum(row.bytes for row in rows)
    claimed = claim(sessions)
    assert [(each.role, each.ordinal, each.key) for each in claimed.loras] == [
        ("content", 0, rows[0].key),
        ("style", 0, rows[1].key),
    ]
    assert [item["name"] for item in caller.get("/jobs").json()["items"]] == ["both"]


def test_a_generate_job_knows_its_loras_in_order_and_their_strengths(caller, sessions, lora):
    first, second = lora("first"), lora("second")
    wishes = [{"lora_id": second, "strength": 0.5}, {"lora_id": first}, {"lora_id": first, "strength": -1}]

    job = submit(caller, kind="generate", prompts=["a dog"], loras=wishes, images_per_prompt=2).json()

    assert [stage["name"] for stage in job["stages"]] == ["generate"]
    assert [(each["ordinal"], each["name"], each["strength"]) for each in job["loras"]] == [
        (0, "second", 0.5),
        (1, "first", 1.0),
        (2, "first", -1.0),
    ]
    assert job["params"]["strengths"] == [0.5, 1.0, -1.0]
    assert len(claim(sessions).loras) == 3


@pytest.mark.parametrize("sides", [("content",), ("style",), ("content", "style")])
def test_a_training_takes_pictures_of_one_side_or_of_both(caller, sides):
    job = submit(caller, kind="train", **{side: [png()] for side in sides}).json()
    assert [stage["name"] for stage in job["stages"]] == [*(f"{side}_lora" for side in sides), "package"]
    assert {image["side"] for image in job["images"]} == set(sides)


def test_what_is_refused_leaves_nothing(caller, sessions, store, lora):
    mine, theirs = lora("mine"), lora("theirs", account_id=make_account(sessions, "others"))
    before = store.keys()
    nowhere = "00000000-0000-7000-8000-000000000000"
    pair = {"content_lora_id": mine, "style_lora_id": mine}
    generate = {"kind": "generate", "prompts": ["x"]}
    for fields, errors in [
        ({"kind": "merge", "content_lora_id": theirs, "style_lora_id": nowhere}, dict.fromkeys(
            ("/params/content_lora_id", "/params/style_lora_id"), "unknown")),
        ({**generate, "loras": [{"lora_id": mine}, {"lora_id": theirs}]}, {"/params/loras/1/lora_id": "unknown"}),
        ({"kind": "merge", **pair, "merge_recipe": "paper"}, dict.fromkeys(
            ("/content_images", "/style_images"), "missing")),
        ({"kind": "merge", **pair, "content": [png()]}, {"/content_images": "not_of_kind"}),
        ({**generate, "content": [png()]}, {"/content_images": "not_of_kind"}),
        ({**generate, "loras": [{"lora_id": nowhere}] * 5}, {"/params/loras": "too_long"}),
        ({**generate, "rank": 3}, {"/params/rank": "not_of_kind"}),
        ({"kind": "train"}, {"/content_images": "missing"}),
        ({"kind": "merge", "content_lora_id": "x", "style_lora_id": mine}, {"/params/content_lora_id": "uuid_parsing"}),
    ]:  # fmt: skip
        assert refused(submit(caller, **fields)) == errors, fields
    assert store.keys() == before
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0
    assert stored_bytes(sessions, caller) == 0


def test_a_file_that_goes_meanwhile_is_named(caller, sessions, store, lora):
    content, style = lora("content"), lora("style")
    store.delete(["library/style"])
    answer = submit(caller, kind="merge", content_lora_id=content, style_lora_id=style)
    assert refused(answer) == {"/params/style_lora_id": "gone"}
    assert of_jobs(store) == []


def test_copies_count_against_the_accounts_bytes(caller, sessions, lora):
    name = "x" * 50
    only = lora(name)
    with transaction(sessions) as session:
        session.scalars(select(Account)).one().max_stored_bytes = len(f"the bytes of {name}")
    assert submit(caller, kind="generate", prompts=["x"], loras=[{"lora_id": only}]).status_code == 202
    assert submit(caller, kind="generate", prompts=["x"], loras=[{"lora_id": only}]).status_code == 429


def test_a_job_is_tried_again_from_its_own_copies_and_deleted_with_them(caller, sessions, store, lora):
    content, style = lora("content"), lora("style")
    first = submit(caller, kind="merge", name="m", content_lora_id=content, style_lora_id=style).json()
    fail(sessions, claim(sessions))
    store.delete(["library/content", "library/style"])

    second = caller.post(f"/jobs/{first['id']}/retry").json()

    assert (second["kind"], second["name"], second["params"]) == ("merge", "m", first["params"])
    assert second["loras"] == first["loras"]
    receipt = caller.request("DELETE", f"/jobs/{first['id']}")
    if receipt.status_code == 409:  # the new one may still go on from its checkpoints
        caller.post(f"/jobs/{second['id']}/cancel")
        receipt = caller.request("DELETE", f"/jobs/{first['id']}")
    sizes = sum(each["bytes"] for each in first["loras"])
    assert receipt.json()["erased"]["inputs"] == {"count": 2, "bytes": sizes}
    assert of_jobs(store, first["id"]) == []
    assert len(of_jobs(store, second["id"])) == 2
    assert stored_bytes(sessions, caller) == sizes


def test_jobs_are_listed_by_kind(caller, lora):
    lone = lora("x")
    submit(caller, kind="generate", prompts=["x"], loras=[{"lora_id": lone}])
    submit(caller, kind="train", content=[png()])
    assert [job["kind"] for job in caller.get("/jobs", params={"kind": "train"}).json()["items"]] == ["train"]


def test_the_same_key_with_other_loras_is_another_request(caller, lora):
    one, two = lora("one"), lora("two")

    def generate(lora_id):
        params = {"kind": "generate", "prompts": ["x"], "loras": [{"lora_id": lora_id}]}
        return caller.submit([], [], params=params, headers={"Idempotency-Key": "k"})

    first = generate(one)
    assert generate(one).json()["id"] == first.json()["id"]
    assert generate(two).json()["code"] == "idempotency_mismatch"


@pytest.mark.parametrize("kind", ["merge", "generate"])
def test_a_job_without_a_training_may_be_stopped_from_the_beginning(caller, sessions, lora, kind):
    """It takes one step, or draws one prompt, at least."""
    mine = lora("x")
    fields = {
        "merge": {"content_lora_id": mine, "style_lora_id": mine},
        "generate": {"prompts": ["x"], "loras": [{"lora_id": mine}]},
    }[kind]
    job = submit(caller, kind=kind, **fields).json()
    assert caller.post(f"/jobs/{job['id']}/stop").status_code == 202
    assert claim(sessions).stop_requested


def test_what_was_stored_before_there_were_kinds_is_still_read(caller, sessions):
    """A retry plans a job anew from its stored configuration."""
    job = caller.submit().json()
    fail(sessions, claim(sessions))
    with transaction(sessions) as session:
        row = session.scalars(select(Job)).one()
        assert not {"kind", "slider"} & row.params.keys()
        assert json.dumps(row.params)
    again = caller.post(f"/jobs/{job['id']}/retry").json()
    with sessions() as session:
        stages = session.scalars(select(Stage.name).where(Stage.job_id == again["id"]).order_by(Stage.ordinal)).all()
    assert stages == ["content_lora", "style_lora", "merge", "package"]


def test_json_carries_jobs_of_every_kind(caller, lora):
    mine = lora("x")
    bodies = [
        {"kind": "merge", "content_lora_id": mine, "style_lora_id": mine},
        {"kind": "generate", "prompts": ["x"], "loras": [{"lora_id": mine, "strength": 0.5}]},
    ]
    for body in bodies:
        answer = caller.post("/jobs", json=body)
        assert answer.status_code == 202, answer.text
        assert answer.json()["kind"] == body["kind"]
    assert refused(caller.post("/jobs", json={**bodies[1], "rank": 2})) == {"/rank": "not_of_kind"}
    assert refused(caller.post("/jobs", json={"kind": "train"})) == {"/content_upload_ids": "missing"}


def test_a_key_that_may_not_read_loras_may_not_name_them(http, sessions, lora):
    narrow = Caller(http, issue_key(sessions, account="mine", scopes=[Scope.JOBS_WRITE]))
    usual = Caller(http, issue_key(sessions, account="mine", scopes=USUAL))
    merging = {"kind": "merge", "content_lora_id": lora("a"), "style_lora_id": lora("b")}
    drawing = {"kind": "generate", "prompts": ["x"], "loras": [{"lora_id": merging["content_lora_id"]}]}
    for wish in (merging, drawing):
        assert problem(submit(narrow, **wish), 403, "insufficient_scope")["missing_scopes"] == ["loras:read"]
        answer = submit(usual, **wish)
        assert answer.status_code == 202, answer.text
