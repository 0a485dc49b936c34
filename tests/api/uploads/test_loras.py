"""LoRAs that are uploaded before they are taken into the library."""

import hashlib
import uuid

import pytest

from api.accounts.scopes import Scope
from api.accounts.service import issue_key
from api.object_keys import received_key
from api.places import Places
from api.storage import ObjectStore
from tests.api.factories import Caller, png
from tests.api.jobs.test_routes import pointers, problem
from tests.api.loras.conftest import lora_file
from tests.api.uploads.test_routes import (
    NOBODYS,
    account_of,
    announce,
    confirm,
    nothing_is_left,
    put,
    stored,
    upload,
)

TYPE = "application/octet-stream"


def take(caller, upload_id, **words):
    return caller.post("/loras", files={"upload_id": (None, upload_id)}, data=words)


def test_one_that_came_by_link_goes_into_the_library(caller, sessions, store):
    data = lora_file()
    link = announce(caller, data, purpose="lora", content_type=TYPE, sha256=hashlib.sha256(data).hexdigest())
    assert put(link, data).status_code == 200
    made = confirm(caller, link).json()
    assert (made["state"], made["kind"], made["width"]) == ("ready", "lora", None)
    assert (made["bytes"], made["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    answer = take(caller, made["id"], name="ink", role="style")
    assert answer.status_code == 201, answer.text
    lora = answer.json()
    assert (lora["name"], lora["role"], lora["rank"]) == ("ink", "style", 4)
    assert [(file["sha256"], file["bytes"]) for file in lora["files"]] == [(made["sha256"], len(data))]
    assert stored(sessions) == 3 * len(data)  # the upload, what its link may still bring, and the LoRA
    assert caller.request("DELETE", f"/uploads/{made['id']}").status_code == 204
    assert stored(sessions) == 2 * len(data)
    assert len(store.keys()) == 1


def test_a_key_that_may_not_read_uploads_may_not_name_one(http, caller, sessions):
    made = upload(caller, lora_file(), purpose="lora").json()
    narrow = Caller(http, issue_key(sessions, account="mine", scopes=[Scope.LORAS_WRITE]))
    assert problem(take(narrow, made["id"]), 403, "insufficient_scope")["missing_scopes"] == ["uploads:read"]
    assert narrow.post("/loras", files={"file": ("a.safetensors", lora_file())}).status_code == 201
    reader = Caller(http, issue_key(sessions, account="mine", scopes=[Scope.LORAS_WRITE, Scope.UPLOADS_READ]))
    assert take(reader, made["id"]).status_code == 201


def test_few_files_are_looked_at_at_a_time(serve, caller, monkeypatch):
    """While one is stored, another way in is closed; pictures come in beside it."""
    monkeypatch.setattr("api.main.lora_places", lambda number: Places(number, wait_s=0.05, refusal="full"))
    caller._http = serve(lora_parallel=1)
    data = lora_file()
    link = announce(caller, data, purpose="lora", content_type=TYPE)
    put(link, data)
    put_file, answers = ObjectStore.put_file, []

    def meanwhile(self, *arguments):
        monkeypatch.setattr(ObjectStore, "put_file", put_file)
        answers.append(upload(caller, data, purpose="lora"))
        answers.append(confirm(caller, link))
        answers.append(caller.post("/loras", files={"file": ("a.safetensors", data)}))
        assert upload(caller, png()).status_code == 201
        put_file(self, *arguments)

    monkeypatch.setattr(ObjectStore, "put_file", meanwhile)
    assert upload(caller, data, purpose="lora").status_code == 201
    for answer in answers:
        problem(answer, 503, "busy")
    assert len(answers) == 3
    assert confirm(caller, link).json()["state"] == "ready"


def test_it_may_come_with_the_request_too(caller):
    made = upload(caller, lora_file(), purpose="lora").json()
    assert take(caller, made["id"]).status_code == 201


@pytest.mark.parametrize("data", [b"", b"\x80\x04 a pickle", png()])
def test_what_is_no_lora_leaves_nothing(caller, sessions, store, data):
    assert pointers(problem(upload(caller, data, purpose="lora"), 422)) == ["/file"]
    link = announce(caller, data or b"x", purpose="lora", content_type=TYPE)
    store.put_bytes(received_key(account_of(sessions), uuid.UUID(link["id"])), data or b"x", TYPE)
    assert pointers(problem(confirm(caller, link), 422)) == ["/file"]
    nothing_is_left(sessions, store)


def test_an_announcement_is_of_a_type_that_its_purpose_has(caller):
    for wish in ({"purpose": "lora", "content_type": "image/png"}, {"content_type": TYPE}):
        answer = caller.post("/uploads/presigned", json={"bytes": 10, **wish})
        assert pointers(problem(answer, 422)) == ["/content_type"]


def test_only_ready_loras_of_ones_own_are_taken(caller, stranger):
    theirs = upload(stranger, lora_file(), purpose="lora").json()["id"]
    picture = upload(caller, png()).json()["id"]
    pending = announce(caller, b"x", purpose="lora", content_type=TYPE)["id"]
    for upload_id in (theirs, picture, pending, NOBODYS, "x"):
        assert pointers(problem(take(caller, upload_id), 422)) == ["/upload_id"]
    both = {"upload_id": (None, picture), "file": ("a.safetensors", lora_file())}
    assert pointers(problem(caller.post("/loras", files=both), 422)) == ["/file"]


def test_a_lora_is_no_picture(caller):
    lora, picture = upload(caller, lora_file(), purpose="lora").json()["id"], upload(caller, png()).json()["id"]
    wish = {"content_upload_ids": [picture], "style_upload_ids": [lora]}
    document = problem(caller.post("/jobs", json=wish), 422)
    assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [
        ("/style_upload_ids/0", "not_an_image")
    ]
