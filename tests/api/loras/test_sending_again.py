"""A LoRA that is sent again under the key of its request."""

import pytest
from sqlalchemy import func, select, update

from api.accounts.models import IdempotencyKey
from api.accounts.service import issue_key
from api.db import transaction
from api.loras.models import Lora
from api.storage import ObjectStore, StoreError
from tests.api.factories import Caller
from tests.api.jobs.test_routes import problem
from tests.api.loras.conftest import lora_file
from tests.api.loras.test_routes import delete, send
from tests.api.uploads.test_routes import upload

KEY = {"Idempotency-Key": '"8e03978e"'}


def again(caller, data=None, headers=KEY, filename="ink.safetensors", **words):
    files = [("file", (filename, lora_file() if data is None else data))]
    return caller.post("/loras", files=files, data=words, headers=headers)


def count(sessions, model):
    with transaction(sessions) as session:
        return session.scalar(select(func.count()).select_from(model))


def test_the_second_answer_is_the_first_and_nothing_is_done_twice(caller, sessions, library):
    first = again(caller, name="Ink", tags=["a", "b"])
    kept = library.objects()
    second = again(caller, name="Ink", tags=["a", "b"], headers={"Idempotency-Key": "8e03978e"})
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    assert second.headers["location"] == first.headers["location"] == first.json()["urls"]["self"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["idempotency-expires"] == first.headers["idempotency-expires"]
    assert count(sessions, Lora) == 1
    assert library.objects() == kept


def test_without_a_key_there_are_two(caller, sessions):
    assert "idempotency-expires" not in send(caller).headers
    send(caller)
    assert count(sessions, Lora) == 2


@pytest.mark.parametrize(
    "other", [{"name": "Oil"}, {"data": lora_file(rank=8)}, {"filename": "oil.safetensors"}, {"tags": ["b", "a"]}]
)
def test_another_payload_is_refused(caller, sessions, other):
    said = {"tags": ["a", "b"]}
    again(caller, **said)
    problem(again(caller, **said | other), 422, "idempotency_mismatch")
    assert count(sessions, Lora) == 1


def test_a_job_may_not_have_the_key_of_a_lora(caller):
    again(caller)
    problem(caller.submit(headers=KEY), 422, "idempotency_mismatch")


def test_an_upload_is_known_again_by_its_id_also_once_it_is_gone(caller, sessions):
    made = upload(caller, lora_file(), purpose="lora").json()

    def ask():
        return caller.post("/loras", files=[("upload_id", (None, made["id"]))], headers=KEY)

    first = ask()
    assert caller.request("DELETE", f"/uploads/{made['id']}").status_code == 204
    assert ask().content == first.content
    assert count(sessions, Lora) == 1


def test_while_the_first_is_in_flight_the_second_is_asked_to_wait(caller, sessions):
    again(caller)
    with transaction(sessions) as session:
        session.execute(update(IdempotencyKey).values(status=None, response=None))
    assert problem(again(caller), 409, "idempotency_in_flight")["retryable"]


def test_a_request_that_was_taken_over_leaves_nothing(caller, sessions, library, monkeypatch):
    put_file = ObjectStore.put_file

    def slow(self, *arguments):
        put_file(self, *arguments)
        with transaction(sessions) as session:
            session.execute(update(IdempotencyKey).values(token=func.gen_random_uuid()))

    monkeypatch.setattr(ObjectStore, "put_file", slow)
    problem(again(caller), 409, "idempotency_in_flight")
    assert caller.get("/loras").json()["items"] == []
    assert library.objects() == []
    assert library.account().stored_bytes == 0


def test_a_refused_or_failed_request_may_be_sent_again_under_its_key(caller, sessions, monkeypatch):
    problem(again(caller, b"no LoRA"), 422)
    with monkeypatch.context() as patch:

        def full(*_):
            raise StoreError("full")

        patch.setattr(ObjectStore, "put_file", full)
        problem(again(caller), 503)
    assert count(sessions, IdempotencyKey) == 0
    assert again(caller).status_code == 201


def test_a_deleted_lora_takes_the_outcome_with_it(caller, sessions):
    first = again(caller).json()
    assert delete(caller, first).status_code == 204
    assert count(sessions, IdempotencyKey) == 0
    assert again(caller).json()["id"] != first["id"]


def test_a_key_that_may_not_write_has_no_replay(caller, http, sessions):
    again(caller)
    reader = Caller(http, issue_key(sessions, account="mine", scopes=["loras:read"]))
    problem(again(reader), 403, "insufficient_scope")


def test_another_account_has_keys_of_its_own(caller, stranger):
    assert again(caller).json()["id"] != again(stranger, name="Other").json()["id"]


def test_a_malformed_key_is_refused(caller):
    problem(again(caller, headers={"Idempotency-Key": "a b"}), 400, "invalid_idempotency_key")
