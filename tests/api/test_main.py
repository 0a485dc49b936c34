"""What holds for every path: keys, problems, ids, documents, torch-freedom."""

import json
import logging
import re
import subprocess
import sys
import uuid

import anyio
import anyio.to_thread
import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text

from api.settings import DatabaseSettings
from api.storage import ObjectStore, StoreMisconfigured

OPEN = {"/livez", "/readyz", "/openapi.json", "/", "/console.json"}
"""The last two are the console's, which holds nothing of anybody."""
HEAVY = ("torch", "diffusers", "peft", "transformers", "numpy", "accelerate", "worker", "celery")


def operations(http):
    document = http.get("/openapi.json").json()
    return [(method, path, body) for path, entry in document["paths"].items() for method, body in entry.items()]


def test_few_paths_open_without_a_key(http):
    served = {route.path for route in http.app.routes if hasattr(route, "path")}
    documented = {path for _, path, _ in operations(http)}
    assert {path for path in served | documented if http.get(path).status_code == 200} == OPEN
    for method, path, body in operations(http):
        if path not in OPEN:
            answer = http.request(method, re.sub(r"{\w+}", str(uuid.uuid4()), path))
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
            assert list(body["security"][0]) == ["api_key"]


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Bearer nonsense", "Basic dXNlcjp3b3Jk", "duo_live_x", "Bearer duo_live_a_b_c", "Bearer " + "x" * 5000],
)
def test_a_bad_key_opens_nothing(http, authorization):
    answer = http.get("/jobs", headers={"Authorization": authorization})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith('Bearer realm="duolora"')


def test_unknown_paths_and_methods_are_problems(http):
    missing, wrong = http.get("/nowhere"), http.put("/jobs")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["allow"]
    assert {answer.headers["content-type"] for answer in (missing, wrong)} == {"application/problem+json"}


def test_what_nobody_foresaw_is_a_problem_without_secrets(caller, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr("api.jobs.listing.list_jobs", fail)
    answer = caller.get("/jobs")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["retryable"] is True
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "swordfish" not in answer.text
    assert "swordfish" in caplog.text


def test_a_database_that_is_gone_is_503(serve, caller):
    gone = DatabaseSettings(url="postgresql+psycopg://nobody:x@127.0.0.1:1/none")
    caller._http = serve(database=gone)
    answer = caller.get("/jobs")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_a_restart_of_the_database_costs_a_reader_nothing(caller, engine):
    path = caller.submit().headers["location"]
    caller.get(path)
    with engine.connect() as connection:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'duolora-api'"
        connection.execute(text(kill + " AND datname = current_database()"))
    assert caller.get(path).status_code == 200


class TestRequestId:
    def test_it_is_echoed(self, http):
        assert http.get("/livez", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"

    @pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "<script>", 'a"b'])
    def test_a_malformed_one_is_replaced(self, http, bad):
        answer = http.get("/nowhere", headers={"X-Request-Id": bad})
        assert answer.headers["x-request-id"] != bad
        assert answer.json()["request_id"] == answer.headers["x-request-id"]

    def test_each_request_has_its_own(self, http):
        assert len({http.get("/livez").headers["x-request-id"] for _ in range(5)}) == 5

    def test_every_request_leaves_one_line_that_names_the_key_but_not_its_secret(self, caller, caplog):
        with caplog.at_level(logging.INFO, logger="api.access"):
            caller.get("/jobs", headers={"X-Request-Id": "here"})
        (record,) = [record for record in caplog.records if record.name == "api.access"]
        assert record.status == 200
        assert record.path == "/jobs"
        assert record.key_id == caller.key.id
        assert record.duration_ms > 0
        assert caller.key.text not in caplog.text


class TestOpenApi:
    def test_every_error_is_documented_as_a_problem(self, http):
        for method, path, body in operations(http):
            for status, response in body["responses"].items():
                if int(status) >= 400 and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"], (method, path, status)
            if path not in OPEN:
                assert {"401", "500", "503"} <= set(body["responses"])
            assert body["operationId"] == body["operationId"].lower()

    def test_every_reference_leads_somewhere(self, http):
        document = http.get("/openapi.json").json()
        text_of_it = json.dumps(document)
        references = {part.split('"')[0] for part in text_of_it.split("#/components/schemas/")[1:]}
        assert references <= set(document["components"]["schemas"])
        assert "JobParams" in references
        assert "HTTPValidationError" not in text_of_it
        assert document["openapi"].startswith("3.1")

    def test_the_webhook_and_the_form_are_described(self, http):
        document = http.get("/openapi.json").json()
        assert "post" in document["webhooks"]["job.succeeded"]
        form = document["paths"]["/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert set(form["properties"]) == {"content_images", "style_images", "archive", "params"}

    def test_streams_keys_and_quotas_are_described(self, http):
        paths = http.get("/openapi.json").json()["paths"]
        stream = paths["/jobs/{job_id}/events"]["get"]
        assert "text/event-stream" in stream["responses"]["200"]["content"]
        assert {"after", "last-event-id"} <= {parameter["name"] for parameter in stream["parameters"]}
        for path in ("/jobs", "/jobs/{job_id}/retry"):
            operation = paths[path]["post"]
            assert "Idempotency-Key" in {parameter["name"] for parameter in operation["parameters"]}
            assert {"Location", "RateLimit", "Idempotency-Replayed"} <= set(operation["responses"]["202"]["headers"])
            assert operation["responses"]["202"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobRead")

    def test_answers_match_their_schema(self, caller):
        """Response models forbid unknown keys and FastAPI validates against them; here: none is missing."""
        schemas = caller._http.get("/openapi.json").json()["components"]["schemas"]
        job = caller.submit().json()
        assert set(schemas["JobRead"]["required"]) <= set(job) == set(schemas["JobRead"]["properties"])
        assert set(caller.get("/jobs").json()["items"][0]) == set(schemas["JobSummary"]["properties"])


class TestHealth:
    def test_livez_answers_while_every_thread_is_busy(self, http):
        async def ask():
            threads = anyio.to_thread.current_default_thread_limiter()
            for number in range(int(threads.total_tokens)):
                threads.acquire_on_behalf_of_nowait(number)
            async with AsyncClient(transport=ASGITransport(http.app), base_url="http://service") as client:
                with anyio.fail_after(10):
                    return await client.get("/livez")

        assert anyio.run(ask).status_code == 200

    def test_livez_asks_nobody(self, serve):
        gone = DatabaseSettings(url="postgresql+psycopg://nobody:x@127.0.0.1:1/none")
        http = serve(database=gone)
        assert http.get("/livez").status_code == 200
        ready = http.get("/readyz")
        assert (ready.status_code, ready.json()["database"], ready.json()["store"]) == (503, "down", "ok")

    def test_everything_up_is_ready(self, http):
        answer = http.get("/readyz")
        assert answer.status_code == 200
        assert set(answer.json().values()) == {"ok"}

    def test_without_the_broker_it_is_ready_but_degraded(self, serve, api_settings):
        dead = api_settings.redis.model_copy(update={"url": type(api_settings.redis.url)("redis://127.0.0.1:1")})
        answer = serve(redis=dead).get("/readyz")
        assert (answer.status_code, answer.json()["status"], answer.json()["broker"]) == (200, "degraded", "down")

    def test_without_the_store_it_is_not_ready(self, serve, api_settings):
        dead = api_settings.store.model_copy(update={"endpoint": "http://127.0.0.1:1"})
        answer = serve(store=dead).get("/readyz")
        assert (answer.status_code, answer.json()["store"]) == (503, "down")

    def test_behind_the_newest_migration_it_is_not_ready(self, http, engine):
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["migrations"]) == (503, "down")

    def test_where_a_newer_version_has_migrated_it_stays_ready(self, http, engine):
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999_of_the_next_version'"))
        answer = http.get("/readyz")
        assert (answer.status_code, answer.json()["migrations"]) == (200, "ok")


def test_a_store_that_serves_anybody_ends_the_start(serve, monkeypatch):
    def broken(self):
        raise StoreMisconfigured("open to all")

    monkeypatch.setattr(ObjectStore, "self_test", broken)
    with pytest.raises(StoreMisconfigured):
        serve()


def test_the_api_imports_nothing_heavy():
    code = f"import api.main, api.__main__, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_the_records_import_no_web_framework():
    modules = "api.jobs.repository, api.webhooks.repository, api.webhooks.delivery, api.storage, api.db, api.settings"
    code = f"import {modules}, sys; print([n for n in ('fastapi', 'starlette', 'uvicorn') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_no_browser_makes_more_of_an_answer_than_data(http, caller):
    for answer in (
        http.get("/jobs"),
        http.get("/nowhere"),
        http.get("/openapi.json"),
        http.get("/livez"),
        caller.get("/jobs"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["cache-control"] == "private, no-cache"


def test_no_other_origin_is_let_in(http, caller):
    for origin in ("https://elsewhere.example", "null", "http://localhost:5173"):
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        for answer in (
            http.options("/jobs", headers=asked),
            http.get("/", headers={"Origin": origin}),
            caller.get("/jobs", headers={"Origin": origin}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert http.options("/jobs", headers=asked).status_code == 405
