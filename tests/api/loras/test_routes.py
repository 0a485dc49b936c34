"""The library over HTTP, against the real store: what is listed, told, sent in, changed and deleted."""

import hashlib
import uuid

import httpx
import pytest
from sqlalchemy import update

from api import main
from api.accounts.models import Account
from api.db import transaction
from api.loras.models import LoraRole, LoraState
from api.places import Places
from tests.api.factories import claim, make_account, make_lora
from tests.api.jobs.test_routes import problem
from tests.api.loras.conftest import lora_file
from tests.api.uploads.test_routes import announce, confirm, put, upload


def send(caller, data=None, filename="ink_v3.safetensors", **words):
    files = [("file", (filename, lora_file() if data is None else data))]
    return caller.post("/loras", files=files, data=words)


def patch(caller, lora, **wish):
    return caller.request("PATCH", lora["urls"]["self"], json=wish)


def delete(caller, lora):
    return caller.request("DELETE", lora["urls"]["self"])


def names(caller, query=""):
    return [lora["name"] for lora in caller.get(f"/loras{query}").json()["items"]]


def problems(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    return [(each["pointer"], each["code"]) for each in answer.json()["errors"]]


def fetched(url):
    answer = httpx.get(url).raise_for_status()
    return answer.headers, answer.content


class TestReading:
    def test_a_lora_of_a_job_has_both_formats_by_links_that_work(self, caller, made):
        told = caller.get(made["urls"]["self"]).json()
        assert [file["format"] for file in told["files"]] == ["diffusers", "kohya"]
        for file in told["files"]:
            headers, data = fetched(file["url"])
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            assert file["filename"] in headers["content-disposition"]

    def test_it_says_where_it_came_from(self, made):
        assert (made["name"], made["role"], made["rank"], made["source"]) == ("cat", "content", 6, "job")
        assert (made["kept"], made["trigger"]) == (False, "sbu cat")
        assert made["urls"]["job"] == f"/jobs/{made['job_id']}"
        assert "url" not in made["files"][0]

    @pytest.mark.parametrize(("query", "form"), [("", "diffusers"), ("?format=kohya", "kohya")])
    def test_a_file_is_one_request_away(self, caller, made, query, form):
        answer = caller.get(made["urls"]["file"] + query, follow_redirects=False)
        assert answer.status_code == 302
        [file] = [each for each in made["files"] if each["format"] == form]
        assert hashlib.sha256(fetched(answer.headers["location"])[1]).hexdigest() == file["sha256"]

    def test_a_format_that_is_not_there_is_not_found(self, caller, made):
        answer = caller.get(made["urls"]["file"] + "?format=peft", follow_redirects=False)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "it has diffusers, kohya" in answer.json()["detail"]

    @pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
    def test_another_account_has_none_of_it(self, caller, stranger, made, method):
        options = {"json": {"name": "x"}} if method == "PATCH" else {}
        for path in (made["urls"]["self"], f"/loras/{uuid.uuid4()}", "/loras/x"):
            answer = stranger.request(method, path, **options)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert stranger.get(made["urls"]["file"]).status_code == 404
        assert names(stranger) == names(stranger, f"?job_id={made['job_id']}") == []
        assert caller.get(made["urls"]["self"]).status_code == 200


class TestList:
    @pytest.fixture
    def several(self, sessions):
        account = make_account(sessions)
        for name, role, tags, base in (
            ("one", LoraRole.CONTENT, ["cat", "old"], "tiny"),
            ("two", LoraRole.STYLE, ["old"], "tiny"),
            ("three", LoraRole.MERGED, ["cat"], "other"),
            ("four", LoraRole.STYLE, [], None),
        ):
            make_lora(sessions, account, name=name, role=role, tags=tags, base_model=base)
        make_lora(sessions, account, name="unseen", state=LoraState.PENDING)

    @pytest.mark.usefixtures("several")
    def test_pages_follow_each_other_newest_first(self, caller):
        found, cursor = [], ""
        while cursor is not None:
            page = caller.get(f"/loras?limit=3{cursor and '&cursor=' + cursor}").json()
            found.append([lora["name"] for lora in page["items"]])
            cursor = page["next_cursor"]
        assert found == [["four", "three", "two"], ["one"]]

    @pytest.mark.usefixtures("several")
    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("?role=style", ["four", "two"]),
            ("?role=style&role=merged", ["four", "three", "two"]),
            ("?tag=cat", ["three", "one"]),
            ("?tag=cat&tag=old", ["one"]),
            ("?base_model=tiny", ["two", "one"]),
            ("?base_model=tiny&role=style&tag=old", ["two"]),
            ("?tag=nobody", []),
        ],
    )
    def test_filters_choose(self, caller, query, found):
        assert names(caller, query) == found

    @pytest.mark.usefixtures("several")
    def test_of_a_job(self, caller, sessions, train):
        job = caller.submit().json()["id"]
        train(claim(sessions))
        [lora] = caller.get(f"/loras?job_id={job}").json()["items"]
        assert lora["job_id"] == job

    @pytest.mark.parametrize("query", ["?cursor=x", "?limit=0", "?role=hero", "?job_id=x", "?tag=" + "x" * 41])
    def test_what_cannot_be_asked_is_refused(self, caller, query):
        assert caller.get(f"/loras{query}").status_code == 422


class TestUpload:
    def test_it_is_served_as_it_came(self, caller, library):
        data = lora_file("lora_unet_a", "lora_down", "lora_up", rank=16, ss_network_dim="16")
        answer = send(
            caller,
            data,
            name=" Ink ",
            tags=["ink", "grey", "ink"],
            role="style",
            base_model="tiny",
            trigger="ink drawing",
        )
        assert answer.status_code == 201, answer.text
        told = answer.json()
        assert answer.headers["location"] == told["urls"]["self"]
        assert (told["name"], told["tags"], told["role"]) == ("Ink", ["ink", "grey"], "style")
        assert (told["base_model"], told["trigger"], told["rank"]) == ("tiny", "ink drawing", 16)
        assert (told["source"], told["kept"], told["job_id"], told["urls"]["job"]) == ("upload", True, None, None)
        [file] = told["files"]
        assert (file["format"], file["filename"]) == ("kohya", "ink_v3.safetensors")
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert fetched(file["url"])[1] == data
        assert names(caller) == ["Ink"]
        assert library.account().stored_bytes == len(data)

    def test_nothing_but_the_file_need_be_said(self, caller):
        told = send(caller).json()
        assert (told["name"], told["role"], told["tags"]) == ("ink_v3", "other", [])
        assert told["base_model"] is told["trigger"] is None

    @pytest.mark.parametrize(
        ("filename", "name"),
        [
            ("C:\\loras\\Café 3.safetensors", "Café 3"),
            ("../../etc/passwd", "passwd"),
            ("\u202e\u200b.safetensors", "lora"),
            ("x" * 300 + ".safetensors", "x" * 80),
        ],
    )
    def test_a_name_from_outside_is_only_a_name(self, caller, filename, name):
        told = send(caller, filename=filename).json()
        assert told["name"] == name
        assert "/" not in told["files"][0]["filename"]
        assert fetched(told["files"][0]["url"])[1] == lora_file()

    @pytest.mark.parametrize("data", [b"PK\x03\x04" + b"\0" * 50, b"", lora_file()[:-3], b"GIF89a" + b"\0" * 50])
    def test_what_is_no_lora_is_refused_and_not_kept(self, caller, library, data):
        answer = send(caller, data)
        assert (answer.status_code, problems(answer)) == (422, [("/file", "invalid_lora")])
        assert library.rows() == []
        assert library.account().stored_bytes == 0

    @pytest.mark.parametrize(
        ("words", "refused"),
        [
            ({"role": "hero"}, ("/role", "enum")),
            ({"base_model": "nobody"}, ("/base_model", "unknown")),
            ({"name": "x" * 81}, ("/name", "string_too_long")),
            ({"name": "a\nb"}, ("/name", "value_error")),
            ({"tags": ["ok", "x" * 41]}, ("/tags/1", "string_too_long")),
            ({"colour": "red"}, ("/colour", "extra_forbidden")),
            ({"name": ["a", "b"]}, ("/name", "too_many")),
        ],
    )
    def test_words_are_bounded(self, caller, words, refused):
        answer = send(caller, **words)
        assert (answer.status_code, problems(answer)) == (422, [refused])

    def test_one_file_is_wanted(self, caller):
        data = lora_file()
        twice = [("file", ("a.safetensors", data)), ("file", ("b.safetensors", data))]
        assert problems(caller.post("/loras", files=twice)) == [("/file", "too_many")]
        none = caller.post("/loras", files=[("name", (None, "x"))])
        assert problems(none) == [("/file", "missing")]
        assert problems(caller.post("/loras", files=[("file", (None, "text"))])) == [("/file", "not_a_file")]
        assert caller.post("/loras", json={"file": "x"}).status_code == 415

    def test_a_file_that_is_too_large_is_refused(self, serve, caller):
        caller._http = serve(lora_max_bytes=100)
        assert problems(send(caller)) == [("/file", "too_large")]

    def test_whoever_waits_too_long_for_a_look_at_a_file_is_asked_to_come_again(
        self, serve, caller, library, monkeypatch
    ):
        places = Places(1, wait_s=0.05, refusal="Too many.")
        monkeypatch.setattr(main, "lora_places", lambda _number: places)
        caller._http = serve()
        link = announce(caller, lora_file(), purpose="lora", content_type="application/octet-stream")
        put(link, lora_file())
        with places.taken():
            for answer in (send(caller), upload(caller, lora_file(), purpose="lora"), confirm(caller, link)):
                assert problem(answer, 503, "busy")["retryable"]
                assert int(answer.headers["retry-after"]) >= 1
        assert library.rows() == []
        assert confirm(caller, link).json()["state"] == "ready"  # nothing that came was lost
        assert send(caller).status_code == 201

    def test_the_quota_counts_it_until_it_is_deleted(self, caller, library, sessions):
        with transaction(sessions) as session:
            session.execute(update(Account).values(max_stored_bytes=len(lora_file()) + 10))
        first = send(caller)
        answer = send(caller)
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert answer.json()["violated_policies"] == ["stored-bytes"]
        assert names(caller) == ["ink_v3"]
        assert len(library.rows()) == len(library.objects()) == 1
        delete(caller, first.json())
        assert library.account().stored_bytes == 0
        assert send(caller).status_code == 201

    def test_a_store_that_is_away_leaves_nothing_for_long(self, serve, caller, api_settings, library, janitor):
        dead = api_settings.store.model_copy(update={"endpoint": "http://127.0.0.1:1"})
        away = type(caller)(serve(store=dead), caller.key)
        answer = send(away)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert names(caller) == []
        janitor.tidy()
        assert library.rows() == library.objects() == []
        assert library.account().stored_bytes == 0

    def test_it_does_not_go_with_any_job(self, caller, made, library):
        send(caller)
        caller.request("DELETE", f"/jobs/{made['job_id']}")
        assert names(caller) == ["ink_v3"]
        library.check()


class TestChange:
    def test_what_is_left_out_stays(self, caller, made):
        assert patch(caller, made, name="Tom", tags=["a", "b", "a"]).json()["tags"] == ["a", "b"]
        told = patch(caller, made, tags=[]).json()
        assert (told["name"], told["tags"], told["kept"]) == ("Tom", [], False)
        assert patch(caller, made).json() | {"files": []} == told | {"files": []}

    @pytest.mark.parametrize(
        ("wish", "refused"),
        [
            ({"name": ""}, "/name"),
            ({"name": None}, "/name"),
            ({"tags": ["x"] * 17}, "/tags"),
            ({"tags": ["\x00"]}, "/tags/0"),
            ({"role": "style"}, "/role"),
            ({"kept": "perhaps"}, "/kept"),
        ],
    )
    def test_what_cannot_be_is_refused(self, caller, made, wish, refused):
        answer = patch(caller, made, **wish)
        assert (answer.status_code, [pointer for pointer, _ in problems(answer)]) == (422, [refused])

    def test_kept_is_for_good(self, caller, made):
        assert patch(caller, made, kept=False).status_code == 200
        told = patch(caller, made, kept=True, name="Tom").json()
        assert (told["kept"], told["name"]) == (True, "Tom")
        assert fetched(told["files"][0]["url"])[1] == b"content_lora"
        answer = patch(caller, made, kept=False, name="Jerry")
        assert (answer.status_code, answer.json()["code"]) == (409, "lora_kept")
        assert caller.get(made["urls"]["self"]).json()["name"] == "Tom"


class TestDelete:
    def test_of_a_job_only_the_row_goes(self, caller, made, library):
        before = library.objects("jobs")
        assert delete(caller, made).status_code == 204
        assert names(caller) == []
        assert (library.objects("jobs"), library.rows()) == (before, [])
        assert delete(caller, made).status_code == 404

    @pytest.mark.parametrize("origin", ["upload", "kept"])
    def test_files_of_its_own_go_with_it(self, caller, made, library, origin):
        before, in_jobs = library.account().stored_bytes, library.objects("jobs")
        lora = send(caller).json() if origin == "upload" else patch(caller, made, kept=True).json()
        assert delete(caller, lora).status_code == 204
        assert library.objects() == []
        assert lora["id"] not in {str(row.id) for row in library.rows()}
        assert (library.account().stored_bytes, library.objects("jobs")) == (before, in_jobs)

    def test_a_store_that_is_away_is_no_hindrance(self, serve, caller, api_settings, library, janitor):
        lora = send(caller).json()
        dead = api_settings.store.model_copy(update={"endpoint": "http://127.0.0.1:1"})
        away = type(caller)(serve(store=dead), caller.key)
        assert delete(away, lora).status_code == 204
        assert caller.get(lora["urls"]["self"]).status_code == 404
        assert len(library.objects()) == 1
        janitor.tidy()
        assert library.rows() == library.objects() == []
        assert library.account().stored_bytes == 0
