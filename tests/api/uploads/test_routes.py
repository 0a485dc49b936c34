"""Uploads over HTTP, against real Postgres and a real S3 server that is written to by link."""

import hashlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from PIL import Image
from sqlalchemy import func, select, update

from api.accounts.models import Account
from api.accounts.service import issue_key
from api.db import transaction
from api.object_keys import received_key
from api.settings import ImageLimits
from api.storage import ObjectStore, StoreError
from api.uploads import service
from api.uploads.link_proof import LinkProof
from api.uploads.models import Upload, UploadState
from tests.api.factories import Caller, encode, png, png_header
from tests.api.jobs.test_routes import pointers, problem

NOBODYS = "019ab2f0-0000-7000-8000-000000000000"


def upload(caller, data, **fields):
    return caller.post("/uploads", files={"file": ("a.png", data)}, data=fields)


def announce(caller, data, **other):
    wish = {"bytes": len(data), "content_type": "image/png"} | other
    answer = caller.post("/uploads/presigned", json=wish)
    assert answer.status_code == 201, answer.text
    return answer.json()


def put(link, data, **headers):
    return httpx.put(link["put_url"], content=data, headers=link["put_headers"] | headers)


def confirm(caller, link):
    return caller.post(f"/uploads/{link['id']}/confirm")


def stored(sessions):
    with transaction(sessions) as session:
        return session.scalar(select(Account.stored_bytes).where(Account.name == "mine"))


def rows(sessions):
    with transaction(sessions) as session:
        return list(session.scalars(select(Upload)))


def account_of(sessions):
    with transaction(sessions) as session:
        return session.scalar(select(Account.id).where(Account.name == "mine"))


def nothing_is_left(sessions, store):
    """Nothing but what a link may still bring."""
    left = rows(sessions)
    assert all(row.state is UploadState.REMOVED and row.link_expires_at is not None for row in left)
    assert store.keys() == []
    assert stored(sessions) == sum(row.bytes for row in left)


class TestDirect:
    def test_a_picture_is_kept_as_jobs_will_use_it(self, caller, sessions, store):
        answer = upload(caller, png((64, 48)))
        assert answer.status_code == 201
        made = answer.json()
        assert (made["state"], made["kind"], made["width"], made["height"]) == ("ready", "image", 64, 48)
        assert answer.headers["location"] == f"/uploads/{made['id']}"
        assert caller.get(answer.headers["location"]).json() == made
        [key], [row] = store.keys(), rows(sessions)
        assert key == row.key
        kept = store.get_bytes(key)
        assert (len(kept), hashlib.sha256(kept).hexdigest()) == (made["bytes"], made["sha256"])
        assert stored(sessions) == made["bytes"]
        left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
        assert timedelta(hours=23) < left <= timedelta(hours=24)

    def test_deleting_gives_its_bytes_back(self, caller, sessions, store):
        path = upload(caller, png()).headers["location"]
        assert caller.request("DELETE", path).status_code == 204
        problem(caller.get(path), 404, "not_found")
        problem(caller.request("DELETE", path), 404)
        assert rows(sessions) == []
        nothing_is_left(sessions, store)

    @pytest.mark.parametrize(
        ("data", "code"),
        [(b"", "empty"), (b"no picture at all", "not_an_image"), (png_header(9000, 9000), "too_many_pixels")],
    )
    def test_what_is_no_usable_picture_leaves_nothing(self, caller, sessions, store, data, code):
        document = problem(upload(caller, data), 422, "invalid_parameters")
        assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [("/file", code)]
        nothing_is_left(sessions, store)

    def test_parts_that_are_wrong_are_named(self, caller):
        other = {"file": ("a.png", png()), "mask": ("b.png", png())}
        assert pointers(problem(caller.post("/uploads", files=other), 422)) == ["/mask"]
        twice = [("file", ("a.png", png())), ("file", ("b.png", png()))]
        assert pointers(problem(caller.post("/uploads", files=twice), 422)) == ["/file"]
        assert pointers(problem(caller.post("/uploads", files={"file": (None, "text")}), 422)) == ["/file"]
        assert pointers(problem(caller.post("/uploads", files={"purpose": (None, "image")}), 422)) == ["/file"]
        assert pointers(problem(upload(caller, png(), purpose="song"), 422)) == ["/purpose"]

    def test_a_store_that_fails_leaves_nothing(self, caller, sessions, store, monkeypatch):
        def full(*_):
            raise StoreError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "put_file", full)
            problem(upload(caller, png()), 503, "store_unavailable")
        nothing_is_left(sessions, store)

    def test_bytes_are_bounded_by_the_quota_and_places_in_the_queue_are_not_asked(self, http, sessions, store):
        quotas = {"max_stored_bytes": 500, "max_queued_jobs": 0}
        caller = Caller(http, issue_key(sessions, account="mine", quotas=quotas))
        assert upload(caller, png()).status_code == 201
        before = stored(sessions)
        document = problem(upload(caller, png((900, 900))), 429, "quota_exceeded")
        assert document["violated_policies"] == ["stored-bytes"]
        assert (stored(sessions), len(store.keys())) == (before, 1)


class TestByLink:
    def test_from_announcement_to_ready(self, caller, sessions, store):
        data = png((64, 48))
        link = announce(caller, data, sha256=hashlib.sha256(data).hexdigest())
        assert (link["state"], link["bytes"], link["width"]) == ("pending", len(data), None)
        assert stored(sessions) == len(data)
        assert put(link, data).status_code == 200
        answer = confirm(caller, link)
        assert answer.status_code == 200
        made = answer.json()
        assert (made["id"], made["state"], made["width"], made["height"]) == (link["id"], "ready", 64, 48)
        assert store.keys() == [row.key for row in rows(sessions)]
        assert stored(sessions) == made["bytes"] + len(data)
        assert confirm(caller, link).json() == made

    def test_the_link_takes_nothing_but_what_was_announced(self, caller, store):
        data = png()
        link = announce(caller, data)
        assert put(link, data + b"x").status_code == 403
        assert put(link, data, **{"Content-Type": "image/jpeg"}).status_code == 403
        assert put(link, data, **{"x-amz-meta-a": "b"}).status_code == 403
        assert httpx.get(link["put_url"]).status_code == 403
        assert store.keys() == []
        assert put(link, data).status_code == 200

    def test_confirming_before_the_file_is_there_can_be_done_again(self, caller):
        data = png()
        link = announce(caller, data)
        problem(confirm(caller, link), 409, "nothing_uploaded")
        put(link, data)
        assert confirm(caller, link).json()["state"] == "ready"

    @pytest.mark.parametrize(
        ("came", "pointer"),
        [
            ((png() + b"more", "image/png"), "/bytes"),
            ((png(), "text/html"), "/content_type"),
            ((png()[:-1] + b"x", "image/png"), "/sha256"),
        ],
    )
    def test_what_is_not_as_announced_is_refused_and_nothing_of_it_is_left(
        self, caller, sessions, store, *, came, pointer
    ):
        """The store itself refuses most of this; another one may not."""
        data = png()
        link = announce(caller, data, sha256=hashlib.sha256(data).hexdigest())
        store.put_bytes(received_key(account_of(sessions), uuid.UUID(link["id"])), *came)
        document = problem(confirm(caller, link), 422, "invalid_parameters")
        assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [(pointer, "differs")]
        nothing_is_left(sessions, store)
        problem(confirm(caller, link), 404)

    @pytest.mark.parametrize(
        ("data", "code"), [(b"GIF89a is no picture here", "not_an_image"), (png((200, 200))[:-30], "damaged")]
    )
    def test_what_is_no_usable_picture_is_refused_and_nothing_of_it_is_left(self, caller, sessions, store, data, code):
        link = announce(caller, data)
        assert put(link, data).status_code == 200
        document = problem(confirm(caller, link), 422)
        assert [(entry["pointer"], entry["code"]) for entry in document["errors"]] == [("/file", code)]
        nothing_is_left(sessions, store)

    def test_what_grows_between_a_look_at_it_and_reading_it_is_refused(self, caller, sessions, store, monkeypatch):
        data = png()
        link = announce(caller, data)
        put(link, data)
        head = ObjectStore.head

        def late(self, key):
            found = head(self, key)
            store.put_bytes(key, data * 3, "image/png")
            return found

        monkeypatch.setattr(ObjectStore, "head", late)
        assert pointers(problem(confirm(caller, link), 422)) == ["/bytes"]
        nothing_is_left(sessions, store)

    def test_an_announcement_is_bounded(self, serve, caller):
        caller._http = serve(images=ImageLimits(max_bytes=100))
        for wish, pointer in (
            ({"bytes": 101, "content_type": "image/png"}, "/bytes"),
            ({"bytes": 0, "content_type": "image/png"}, "/bytes"),
            ({"bytes": 10, "content_type": "image/gif"}, "/content_type"),
            ({"bytes": 10, "content_type": "image/png", "sha256": "x"}, "/sha256"),
        ):
            assert pointers(problem(caller.post("/uploads/presigned", json=wish), 422)) == [pointer]

    def test_what_is_kept_may_not_exceed_the_quota_either(self, http, sessions, store):
        """A small JPEG becomes a large PNG."""
        caller = Caller(http, issue_key(sessions, account="mine", quotas={"max_stored_bytes": 20_000}))
        noise = noisy_jpeg()
        link = announce(caller, noise, content_type="image/jpeg")
        put(link, noise)
        problem(confirm(caller, link), 429, "quota_exceeded")
        assert store.keys() == [received_key(account_of(sessions), uuid.UUID(link["id"]))]
        assert stored(sessions) == len(noise)
        with transaction(sessions) as session:
            session.execute(update(Account).values(max_stored_bytes=None))
        assert confirm(caller, link).json()["state"] == "ready"

    def test_deleting_gives_no_room_for_more_links_than_the_quota_has(self, http, sessions):
        data = png()
        caller = Caller(http, issue_key(sessions, account="mine", quotas={"max_stored_bytes": len(data) * 3 // 2}))
        link = announce(caller, data)
        assert caller.request("DELETE", f"/uploads/{link['id']}").status_code == 204
        assert put(link, data).status_code == 200
        again = caller.post("/uploads/presigned", json={"bytes": len(data), "content_type": "image/png"})
        problem(again, 429, "quota_exceeded")
        assert stored(sessions) == len(data)

    def test_one_that_is_ready_counts_with_what_its_link_may_bring_until_it_is_deleted(self, caller, sessions):
        data = png((64, 48))
        link = announce(caller, data)
        put(link, data)
        made = confirm(caller, link).json()
        assert put(link, data).status_code == 200
        assert stored(sessions) == made["bytes"] + len(data)
        assert caller.request("DELETE", f"/uploads/{link['id']}").status_code == 204
        assert stored(sessions) == len(data)

    def test_a_link_that_ended_long_ago_counts_no_more(self, caller, sessions):
        data = png()
        link = announce(caller, data)
        put(link, data)
        with transaction(sessions) as session:
            session.execute(update(Upload).values(link_expires_at=func.now() - timedelta(hours=2)))
        made = confirm(caller, link).json()
        assert stored(sessions) == made["bytes"]

    def test_what_is_written_after_a_deletion_is_the_janitors(self, caller, sessions):
        data = png()
        link = announce(caller, data)
        assert caller.request("DELETE", f"/uploads/{link['id']}").status_code == 204
        problem(caller.get(f"/uploads/{link['id']}"), 404)
        put(link, data)
        problem(confirm(caller, link), 404)
        [row] = rows(sessions)
        assert (row.state, row.expires_at) == (UploadState.REMOVED, row.link_expires_at)

    def test_one_that_is_deleted_while_it_is_confirmed_leaves_nothing(self, caller, sessions, store, monkeypatch):
        data = png()
        link = announce(caller, data)
        put(link, data)
        put_file = ObjectStore.put_file

        def slow(self, *arguments):
            put_file(self, *arguments)
            assert caller.request("DELETE", f"/uploads/{link['id']}").status_code == 204
            put_file(self, *arguments)

        monkeypatch.setattr(ObjectStore, "put_file", slow)
        problem(confirm(caller, link), 404)
        nothing_is_left(sessions, store)

    def test_of_two_confirmations_at_once_both_have_the_same_answer(self, caller, sessions, store, monkeypatch):
        data = png()
        link = announce(caller, data)
        put(link, data)
        both = threading.Barrier(2, timeout=30)
        head = ObjectStore.head

        def together(self, key):
            both.wait()
            return head(self, key)

        monkeypatch.setattr(ObjectStore, "head", together)
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: confirm(caller, link), range(2)))
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        assert stored(sessions) == answers[0].json()["bytes"] + len(data)
        assert len(store.keys()) == 1

    def test_a_confirmation_that_is_late_leaves_what_is_ready_as_it_is(self, caller, sessions, store, monkeypatch):
        """Between its look and its writing another file of the size came, and was confirmed."""
        first, second = padded(png((64, 48))), padded(png((80, 60)))
        link = announce(caller, first)
        put(link, first)
        put_file, answers = ObjectStore.put_file, []

        def late(self, *arguments):
            monkeypatch.setattr(ObjectStore, "put_file", put_file)
            assert put(link, second).status_code == 200
            answers.append(confirm(caller, link))
            put_file(self, *arguments)

        monkeypatch.setattr(ObjectStore, "put_file", late)
        answers.append(confirm(caller, link))
        assert [answer.status_code for answer in answers] == [200, 200]
        made = answers[0].json()
        assert (answers[1].json(), made["width"]) == (made, 80)
        [row] = rows(sessions)
        assert store.keys() == [row.key]
        assert hashlib.sha256(store.get_bytes(row.key)).hexdigest() == row.sha256 == made["sha256"]

    def test_one_that_was_ready_before_rows_named_keys_is_still_there(self, caller, sessions, store):
        made = upload(caller, png()).json()
        [row] = rows(sessions)
        former = f"accounts/{row.account_id}/uploads/{row.id}/ready"
        store.copy(row.key, former)
        store.delete([row.key])
        with transaction(sessions) as session:
            session.execute(update(Upload).values(key=None))
        wish = {"kind": "train", "content_upload_ids": [made["id"]], "subject_class": "cat"}
        assert caller.post("/jobs", json=wish).status_code == 202

    def test_a_store_that_heeds_what_was_not_signed_gets_no_links(self, caller, sessions, store, monkeypatch):
        monkeypatch.setattr(LinkProof, "_try", lambda _: False)
        answer = caller.post("/uploads/presigned", json={"bytes": 5, "content_type": "image/png"})
        problem(answer, 409, "links_unavailable")
        nothing_is_left(sessions, store)


def test_the_store_of_the_tests_keeps_to_its_links_and_the_proof_leaves_nothing(store):
    proof = LinkProof(store)
    assert proof.holds()
    assert proof.holds()
    assert store.keys() == []


def test_the_proof_holds_where_the_public_endpoint_leads_nowhere_from_here(store, store_settings):
    """As inside a container, whose outer port is another's."""
    away = ObjectStore(store_settings.model_copy(update={"public_endpoint": "http://127.0.0.1:1"}))
    assert LinkProof(away).holds()
    assert store.keys() == []


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_store_that_fails_is_asked_again(store, store_settings, status):
    """At the public endpoint, until nobody answers there and the internal one is asked."""
    with answering(status) as endpoint:
        proof = LinkProof(ObjectStore(store_settings.model_copy(update={"public_endpoint": endpoint})))
        with pytest.raises(StoreError, match=str(status)):
            proof.holds()
        assert store.keys() == []
    assert proof.holds()


def test_a_store_that_refuses_its_links_is_asked_again(store, store_settings):
    with answering(403) as endpoint:
        proof = LinkProof(ObjectStore(store_settings.model_copy(update={"public_endpoint": endpoint})))
        assert not proof.holds()
    assert proof.holds()


def test_a_store_that_copied_once_is_not_asked_again(store, monkeypatch):
    answers = [False, True]
    monkeypatch.setattr(LinkProof, "_try", lambda _: answers.pop(0))
    proof = LinkProof(store)
    assert (proof.holds(), proof.holds(), answers) == (False, False, [True])


@contextmanager
def answering(status):
    """An endpoint that answers everything with one status."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_proof_sees_a_store_that_copies_what_was_not_signed_for(store, monkeypatch):
    """Played by a request that copies as such a store would."""

    def heedless(_self, _link, _data, headers):
        if "x-amz-copy-source" in headers:
            source = headers["x-amz-copy-source"].split("/", 2)[2]
            store.copy(source, source.replace("/source", "/target"))
        return True

    monkeypatch.setattr(ObjectStore, "put_by_link", heedless)
    assert not LinkProof(store).holds()
    assert store.keys() == []


def test_uploads_of_others_are_not_there(caller, stranger):
    path = upload(caller, png()).headers["location"]
    link = announce(caller, png())
    problem(stranger.get(path), 404)
    problem(stranger.request("DELETE", path), 404)
    problem(stranger.post(f"/uploads/{link['id']}/confirm"), 404)
    assert caller.get(path).status_code == 200


def test_what_is_over_is_not_there_before_the_janitor_comes(caller, sessions):
    path = upload(caller, png()).headers["location"]
    with transaction(sessions) as session:
        session.execute(update(Upload).values(expires_at=func.now()))
    problem(caller.get(path), 404)
    problem(caller.request("DELETE", path), 404)


def test_only_ids_name_uploads(caller):
    for path in ("/uploads/x", f"/uploads/{NOBODYS}", f"/uploads/{NOBODYS}/confirm", "/uploads/presigned/confirm"):
        answer = caller.post(path) if path.endswith("confirm") else caller.get(path)
        assert answer.status_code == 404, path


def padded(picture):
    """To one size for all: what follows the end of a PNG is not looked at."""
    return picture.ljust(20_000, b"\0")


def noisy_jpeg():
    return encode(Image.effect_noise((200, 200), 90).convert("RGB"), "JPEG", quality=30)


def test_lifetimes_are_settings(api_settings, sessions, store):
    settings = type(api_settings.uploads)(lifetime_h=0.5, link_lifetime_s=7200)
    made = service.UploadService(settings, sessions, store, None)
    assert made._lifetime == made._link_lifetime == timedelta(minutes=30)
