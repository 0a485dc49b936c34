"""Jobs submitted as JSON with uploads."""

import uuid

import pytest
from sqlalchemy import select

from api.accounts.scopes import USUAL, Scope
from api.accounts.service import issue_key
from api.db import transaction
from api.jobs.models import Job, JobImage
from api.object_keys import upload_prefix
from api.storage import ObjectStore
from tests.api.factories import Caller, png
from tests.api.jobs.test_routes import pointers, problem
from tests.api.uploads.test_routes import NOBODYS, account_of, announce, stored, upload


@pytest.fixture
def pictures(caller):
    """Ids of three uploads."""
    return [upload(caller, png(color=(number, 0, 0))).json() for number in range(3)]


def submit(caller, content, style, headers=None, **params):
    wish = {"content_upload_ids": content, "style_upload_ids": style, **params}
    return caller.post("/jobs", json=wish, headers=headers or {})


def ids(pictures):
    return [picture["id"] for picture in pictures]


def test_a_job_has_copies_and_the_uploads_stay(caller, sessions, store, pictures):
    before = stored(sessions)
    one, two, three = ids(pictures)
    answer = submit(caller, [two, one], [three], rank=3, subject_class="cat")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert [(image["side"], image["ordinal"], image["sha256"]) for image in job["images"]] == [
        ("content", 0, pictures[1]["sha256"]),
        ("content", 1, pictures[0]["sha256"]),
        ("style", 0, pictures[2]["sha256"]),
    ]
    assert job["params"]["content"]["rank"] == 3
    assert stored(sessions) == 2 * before
    with transaction(sessions) as session:
        assert session.scalars(select(Job.request)).one() == {"rank": 3, "subject_class": "cat"}
        keys = session.scalars(select(JobImage.key)).all()
    for picture in pictures:
        assert caller.request("DELETE", f"/uploads/{picture['id']}").status_code == 204
    assert sorted(store.keys()) == sorted(keys)
    assert stored(sessions) == before


@pytest.mark.parametrize("validate_only", ["false", "true"])
def test_a_key_that_may_not_read_uploads_may_not_name_them(http, sessions, pictures, validate_only):
    [one, *_] = ids(pictures)
    wish = {"content_upload_ids": [one], "style_upload_ids": [one]}
    path = f"/jobs?validate_only={validate_only}"
    narrow = Caller(http, issue_key(sessions, account="mine", scopes=[Scope.JOBS_WRITE]))
    answer = narrow.post(path, json=wish)
    assert problem(answer, 403, "insufficient_scope")["missing_scopes"] == ["uploads:read"]
    assert 'scope="uploads:read"' in answer.headers["www-authenticate"]
    assert narrow.submit([png()], [png()]).status_code == 202
    reader = Caller(http, issue_key(sessions, account="mine", scopes=[Scope.JOBS_WRITE, Scope.UPLOADS_READ]))
    assert reader.post(path, json=wish).status_code == (200 if validate_only == "true" else 202)
    usual = Caller(http, issue_key(sessions, account="mine", scopes=USUAL))
    assert submit(usual, [one], [one]).status_code == 202


def test_one_upload_may_serve_twice(caller, store, pictures):
    [one, *_] = ids(pictures)
    assert submit(caller, [one], [one]).status_code == 202
    assert len(store.keys()) == 5


def test_sent_again_it_is_known_again_even_when_its_uploads_are_gone(caller, pictures):
    key = {"Idempotency-Key": "uploads"}
    one, two, three = ids(pictures)
    first = submit(caller, [one], [two], key)
    caller.request("DELETE", f"/uploads/{one}")
    again = submit(caller, [one], [two], key)
    assert (again.status_code, again.json()) == (202, first.json())
    problem(submit(caller, [three], [two], key), 422, "idempotency_mismatch")


def test_what_cannot_be_named_is_told_by_its_place(caller, stranger, pictures):
    theirs = upload(stranger, png()).json()["id"]
    pending = announce(caller, png())["id"]
    [one, *_] = ids(pictures)
    document = problem(submit(caller, [one, NOBODYS, theirs], [pending]), 422)
    assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [
        ("/content_upload_ids/1", "unknown"),
        ("/content_upload_ids/2", "unknown"),
        ("/style_upload_ids/0", "pending"),
    ]


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({"rank": 0}, "/rank"),
        ({"rank": "3"}, "/rank"),
        ({"steps": {"content": 0}}, "/steps/content"),
        ({"colour": "blue"}, "/colour"),
        ({"webhook_secret": "x"}, "/webhook_secret"),
        ({"content_upload_ids": ["x"]}, "/content_upload_ids/0"),
        ({"content_upload_ids": []}, "/content_upload_ids"),
        ({"content_upload_ids": [NOBODYS] * 21}, "/content_upload_ids"),
    ],
)
def test_a_refused_field_is_named_where_the_document_has_it(caller, pictures, wish, pointer):
    [one, *_] = ids(pictures)
    answer = caller.post("/jobs", json={"content_upload_ids": [one], "style_upload_ids": [one], **wish})
    assert pointers(problem(answer, 422)) == [pointer]


@pytest.mark.parametrize(
    ("data", "pointer"), [(b"{", "/"), (b"[]", "/"), (b"\xff", "/"), (b"", "/content_upload_ids"), (b"[" * 50_000, "/")]
)
def test_what_is_no_document_is_refused(caller, data, pointer):
    answer = caller.post("/jobs", content=data, headers={"Content-Type": "application/json"})
    assert pointers(problem(answer, 422))[0] == pointer


def test_a_document_is_bounded(caller):
    answer = caller.post("/jobs", json={"subject_class": "x" * 70_000})
    problem(answer, 413, "too_large")


def test_an_upload_that_goes_at_the_last_moment_leaves_no_job(caller, sessions, store, pictures, monkeypatch):
    one, two, _ = ids(pictures)
    copy = ObjectStore.copy

    def late(self, source, target):
        store.delete(store.keys(upload_prefix(account_of(sessions), uuid.UUID(two))))
        copy(self, source, target)

    monkeypatch.setattr(ObjectStore, "copy", late)
    document = problem(submit(caller, [one], [two]), 422)
    assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [("/style_upload_ids/0", "gone")]
    assert len(store.keys()) == 2
    with transaction(sessions) as session:
        assert session.scalars(select(Job)).all() == []
