"""Endpoints and the log of deliveries over HTTP, as their owner and as a stranger sees them."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, update
from standardwebhooks.webhooks import Webhook

from api.accounts.models import Account
from api.db import transaction
from api.documents import MAX_DOCUMENT_BYTES
from api.settings import WebhookSettings
from api.webhooks.delivery import WebhookSender
from api.webhooks.models import WebhookDelivery
from api.webhooks.schemas import PingEvent
from api.webhooks.service import MAX_ENDPOINTS
from api.webhooks.signing import make_secret
from tests.api.factories import Caller, cancel, make_job
from tests.support.vault import VAULT
from tests.support.webhook_receiver import webhook_receiver

URL = "https://receiver.example/hook"
LOOPBACK = WebhookSettings(allow_cidrs="127.0.0.0/8", timeout_s=5)
MISSING = "00000000-0000-7000-8000-000000000000"


class Owner(Caller):
    """A caller who changes and deletes as well."""

    def patch(self, path, **options):
        return self._http.patch(path, headers=self._headers(options), **options)

    def delete(self, path, **options):
        return self._http.delete(path, headers=self._headers(options), **options)

    def create(self, url=URL, **wish):
        answer = self.post("/webhooks", json={"url": url, **wish})
        assert answer.status_code == 201, answer.text
        return answer.json()


@pytest.fixture
def owner(caller):
    return Owner(caller._http, caller.key)


@pytest.fixture
def account(sessions, owner):
    with transaction(sessions) as session:
        return session.query(Account).filter_by(name="mine").one().id


def without(document, *names):
    return {name: value for name, value in document.items() if name not in names}


def code(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_an_endpoint_is_made_and_its_secret_shown_once(owner):
    answer = owner.post("/webhooks", json={"url": URL, "events": ["job.failed", "job.failed"], "description": "pager"})
    made = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/webhooks/{made['id']}")
    assert made["secret"].startswith("whsec_")
    assert (made["url"], made["events"], made["description"]) == (URL, ["job.failed"], "pager")
    assert (made["state"], made["disabled_reason"], made["job_id"]) == ("enabled", None, None)
    again = owner.get(made["urls"]["self"])
    assert again.json() == without(made, "secret")
    assert owner.get("/webhooks").json()["items"] == [again.json()]
    assert made["secret"] not in again.text


def test_a_secret_of_ones_own_is_taken(owner):
    secret = make_secret()
    assert owner.create(secret=secret)["secret"] == secret


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "hunter2",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        base64.b64encode(b"x" * 32).decode(),
        "whsec_" + "ü" * 40,
        "whsec_" + "A" * 43,
    ],
)
def test_a_secret_that_the_standard_forbids_is_refused_and_not_repeated(owner, secret):
    answer = owner.post("/webhooks", json={"url": URL, "secret": secret})
    assert code(answer) == (422, "invalid_parameters")
    assert answer.json()["errors"][0]["pointer"] == "/secret"
    assert len(secret) < 8 or secret not in answer.text


@pytest.mark.parametrize(
    ("wish", "pointer", "fault"),
    [
        ({"url": "http://receiver.example/"}, "/url", "url_refused"),
        ({"url": "https://169.254.169.254/latest"}, "/url", "url_refused"),
        ({"url": "https://user:word@receiver.example/"}, "/url", "url_refused"),
        ({"url": "https://receiver.example/" + "x" * 2000}, "/url", "string_too_long"),
        ({}, "/url", "missing"),
        ({"url": URL, "events": ["job.imagined"]}, "/events/0", "enum"),
        ({"url": URL, "events": ["webhook.ping"]}, "/events/0", "enum"),
        ({"url": URL, "colour": "red"}, "/colour", "extra_forbidden"),
        ({"url": URL, "description": "x" * 501}, "/description", "string_too_long"),
    ],
)
def test_what_cannot_work_is_refused_by_field(owner, wish, pointer, fault):
    answer = owner.post("/webhooks", json=wish)
    assert code(answer) == (422, "invalid_parameters")
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, fault)]


def test_a_listed_network_may_be_named(serve, sessions, api_settings, owner):
    http = serve(webhooks=LOOPBACK)
    assert Owner(http, owner.key).create("http://127.0.0.1:9/")["url"] == "http://127.0.0.1:9/"


def test_so_many_endpoints_and_no_more_even_at_once(owner, sessions, account):
    make_job(sessions, account, webhook_url=URL)
    for _ in range(MAX_ENDPOINTS - 2):
        owner.create()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: owner.post("/webhooks", json={"url": URL}), range(6)))
    assert sorted(answer.status_code for answer in answers) == [201] * 2 + [409] * 4
    assert {code(answer)[1] for answer in answers if answer.status_code == 409} == {"too_many_endpoints"}


def test_a_large_document_is_not_read(owner):
    answer = owner.post("/webhooks", content=b" " * (MAX_DOCUMENT_BYTES + 1))
    assert code(answer) == (413, "too_large")

    def endless():
        for _ in range(100):
            yield b" " * 10_000

    assert code(owner.post("/webhooks", content=endless())) == (413, "too_large")
    assert code(owner.post("/webhooks", content=b"{")) == (415, "unsupported_media_type")


def test_an_endpoint_is_changed_where_asked(owner):
    made = owner.create(events=["job.failed"], description="pager")
    path = made["urls"]["self"]
    assert owner.patch(path, json={}).json() == without(made, "secret")
    assert owner.patch(path, json={"description": ""}).json() == {**without(made, "secret"), "description": ""}
    assert owner.patch(path, json={"events": []}).json()["events"] == []
    assert owner.patch(path, json={"url": "https://other.example/"}).json()["url"] == "https://other.example/"
    assert code(owner.patch(path, json={"url": "https://10.0.0.1/"})) == (422, "invalid_parameters")
    assert code(owner.patch(path, json={"url": None})) == (422, "invalid_parameters")
    assert code(owner.patch(path, json={"secret": make_secret()})) == (422, "invalid_parameters")
    off = owner.patch(path, json={"state": "disabled"}).json()
    assert (off["state"], off["disabled_reason"]) == ("disabled", "by_owner")
    assert off["disabled_at"] is not None
    for _ in range(2):
        on = owner.post(f"{path}/enable")
        assert on.status_code == 200
        assert (on.json()["state"], on.json()["disabled_at"], on.json()["disabled_reason"]) == ("enabled", None, None)
    owner.patch(path, json={"state": "disabled"})
    assert owner.patch(path, json={"state": "enabled"}).json()["state"] == "enabled"


def test_disabling_gives_up_what_is_on_its_way_and_a_new_url_takes_it_along(owner, sessions, account, post):
    path = owner.create()["urls"]["self"]
    make_job(sessions, account)
    owner.patch(path, json={"url": "https://other.example/"})
    assert post.row().url == "https://other.example/"
    owner.patch(path, json={"state": "disabled"})
    assert (post.row().state, post.row().last_error) == ("exhausted", "the endpoint was disabled")
    make_job(sessions, account)
    assert len(post.rows()) == 1


def test_a_deleted_endpoint_is_gone_with_its_log(owner, sessions, account, post):
    path = owner.create()["urls"]["self"]
    make_job(sessions, account)
    assert len(post.rows()) == 1
    assert owner.delete(path).status_code == 204
    assert post.rows() == []
    assert code(owner.get(path)) == (404, "not_found")
    assert code(owner.delete(path)) == (404, "not_found")


def test_the_endpoint_of_a_job_is_found_by_it_and_lives_as_long(owner, sessions, account, post):
    job_id = make_job(sessions, account, webhook_url=URL)
    cancel(sessions, account, job_id)
    assert owner.get("/webhooks").json()["items"] == []
    (found,) = owner.get("/webhooks", params={"job_id": str(job_id)}).json()["items"]
    path = found["urls"]["self"]
    assert (found["job_id"], found["url"]) == (str(job_id), URL)
    assert code(owner.delete(path)) == (409, "job_webhook")
    assert owner.patch(path, json={"state": "disabled"}).json()["state"] == "disabled"
    assert owner.get("/webhooks", params={"job_id": MISSING}).json()["items"] == []


def test_a_job_says_how_its_webhook_is_doing(owner, sessions, account, post):
    def look(job_id):
        return owner.get(f"/jobs/{job_id}").json()["webhook"]

    assert look(make_job(sessions, account)) is None
    job = owner.submit(params={"webhook_url": URL, "webhook_events": ["job.queued"]}).json()
    assert look(job["id"]) == {"url": URL, "state": "enabled", "disabled_reason": None, "last_status": None}
    (due,) = post.take()
    post.record(due, status=410, error="gone", final=True)
    assert look(job["id"]) == {"url": URL, "state": "disabled", "disabled_reason": "gone", "last_status": 410}


def test_a_rotated_secret_overlaps_with_the_one_before(owner, sessions, account, post):
    with webhook_receiver() as end:
        endpoint_id = post.add_endpoint(account, url=end.url)
        path = f"/webhooks/{endpoint_id}"
        with transaction(sessions) as session:
            before = VAULT.open(session.get(Account, account).webhook_secret)
        answer = owner.post(f"{path}/rotate")
        rotated = answer.json()
        assert answer.status_code == 200
        expires_at = datetime.fromisoformat(rotated["previous_secret_expires_at"])
        assert timedelta(hours=23) < expires_at - datetime.now(UTC) < timedelta(hours=25)
        make_job(sessions, account)
        (due,) = post.take()
        assert WebhookSender(LOOPBACK).send(due).is_delivered
        got = end.deliveries.get(timeout=5)
        for secret in (before, rotated["secret"]):
            assert Webhook(secret).verify(got.body.decode(), got.headers)["type"] == "job.queued"
        chosen = make_secret()
        assert owner.post(f"{path}/rotate", json={"secret": chosen}).json()["secret"] == chosen
        make_job(sessions, account)
        assert post.take()[0].secrets == (chosen, rotated["secret"])
    assert code(owner.post(f"{path}/rotate", json={"secret": "x"})) == (422, "invalid_parameters")


def test_without_an_overlap_only_the_new_secret_signs(serve, owner, sessions, account, post):
    hard = Owner(serve(webhooks=WebhookSettings(previous_secret_h=0)), owner.key)
    made = hard.create()
    rotated = hard.post(f"{made['urls']['self']}/rotate").json()
    assert rotated["previous_secret_expires_at"] is None
    make_job(sessions, account)
    assert post.take()[0].secrets == (rotated["secret"],)


def test_a_ping_is_sent_once_and_its_log_tells_how_it_went(owner, post):
    with webhook_receiver() as end:
        made = owner.create()
        post.redirect(UUID(made["id"]), end.url)
        answer = owner.post(f"{made['urls']['self']}/ping")
        assert answer.status_code == 202
        ping = answer.json()
        assert (ping["type"], ping["job_id"], ping["state"], ping["attempts"]) == ("webhook.ping", None, "pending", 0)
        (due,) = post.take()
        outcome = WebhookSender(LOOPBACK).send(due)
        got = end.deliveries.get(timeout=5)
        event = PingEvent.model_validate(Webhook(made["secret"]).verify(got.body.decode(), got.headers))
        assert (str(event.data.endpoint_id), event.type) == (made["id"], "webhook.ping")
        assert event.data.urls.self == "http://testserver" + made["urls"]["self"]
        assert got.headers["webhook-id"] == ping["webhook_id"]
        assert got.headers["x-request-id"] == answer.headers["x-request-id"]
        post.record(due, status=outcome.status)
    detail = owner.get(f"/webhooks/deliveries/{ping['id']}").json()
    assert (detail["state"], detail["attempts"], detail["next_attempt_at"]) == ("delivered", 1, None)
    assert detail["body"] == due.body
    assert [(one["attempt"], one["status"], one["error"]) for one in detail["log"]] == [(1, 204, None)]


def test_a_failed_ping_is_not_tried_again_and_disables_nothing(owner, post):
    path = owner.create()["urls"]["self"]
    ping = owner.post(f"{path}/ping").json()
    (due,) = post.take()
    post.record(due, status=500, error="answered 500: no")
    detail = owner.get(f"/webhooks/deliveries/{ping['id']}").json()
    assert (detail["state"], detail["last_status"], detail["last_error"]) == ("exhausted", 500, "answered 500: no")
    assert owner.get(path).json()["state"] == "enabled"


def test_a_disabled_endpoint_is_neither_pinged_nor_sent_anything_again(owner, sessions, account, post):
    path = owner.create()["urls"]["self"]
    make_job(sessions, account)
    owner.patch(path, json={"state": "disabled"})
    assert code(owner.post(f"{path}/ping")) == (409, "endpoint_disabled")
    replay = f"/webhooks/deliveries/{post.row().id}/replay"
    assert code(owner.post(replay)) == (409, "endpoint_disabled")
    owner.post(f"{path}/enable")
    assert owner.post(replay).status_code == 202


def test_a_replay_is_the_same_event_to_where_the_endpoint_is_now(owner, sessions, account, post):
    path = owner.create()["urls"]["self"]
    make_job(sessions, account, request_id="r-1")
    (due,) = post.take()
    post.record(due, status=204)
    owner.patch(path, json={"url": "https://other.example/"})
    again = owner.post(f"/webhooks/deliveries/{due.id}/replay").json()
    third = owner.post(f"/webhooks/deliveries/{again['id']}/replay").json()
    assert again["replay_of"] == third["replay_of"] == str(due.id)
    assert len({str(due.id), again["id"], third["id"]}) == 3
    replays = post.take()
    assert len(replays) == 2
    for replayed in replays:
        assert (replayed.message, replayed.body, replayed.job_id) == (due.message, due.body, due.job_id)
        assert replayed.request_id == due.request_id == "r-1"
        assert (replayed.url, replayed.attempt) == ("https://other.example/", 1)
    assert post.rows()[0].url == URL, "what was delivered stays as it was"


def test_deliveries_are_listed_newest_first_page_by_page(owner, sessions, account, post):
    path = owner.create(events=["job.queued"])["urls"]["self"]
    owner.create()
    jobs = [str(make_job(sessions, account)) for _ in range(5)]
    seen, cursor = [], None
    while True:
        page = owner.get(f"{path}/deliveries", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [item["job_id"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
        make_job(sessions, account)  # what comes meanwhile shifts nothing
    assert seen == jobs[::-1]
    assert owner.get(f"{path}/deliveries", params={"state": "delivered"}).json()["items"] == []
    assert len(owner.get(f"{path}/deliveries", params={"state": "pending"}).json()["items"]) == 7
    assert code(owner.get(f"{path}/deliveries", params={"cursor": "x"})) == (422, "invalid_parameters")
    assert owner.get(f"{path}/deliveries", params={"limit": 101}).status_code == 422


def test_equal_instants_are_no_trouble_to_pages(owner, sessions, account, post):
    path = owner.create(events=["job.queued"])["urls"]["self"]
    for _ in range(4):
        make_job(sessions, account)
    with transaction(sessions) as session:
        session.execute(update(WebhookDelivery).values(created_at=func.now()))
    first = owner.get(f"{path}/deliveries", params={"limit": 3}).json()
    rest = owner.get(f"{path}/deliveries", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert len({item["id"] for item in first["items"] + rest["items"]}) == 4


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", ""),
        ("patch", ""),
        ("delete", ""),
        ("post", "/enable"),
        ("post", "/rotate"),
        ("post", "/ping"),
        ("get", "/deliveries"),
    ],
)
def test_another_accounts_endpoint_does_not_exist(owner, stranger, post, method, path):
    made = owner.create()
    before = json.dumps(owner.get("/webhooks").json())
    other = Owner(stranger._http, stranger.key)
    for target in (made["id"], MISSING, "nonsense"):
        options = {"json": {"state": "disabled"}} if method == "patch" else {}
        answer = getattr(other, method)(f"/webhooks/{target}{path}", **options)
        assert code(answer) == (404, "not_found")
        assert answer.json()["detail"] == f"There is no webhook {target}."
    assert json.dumps(owner.get("/webhooks").json()) == before
    assert other.get("/webhooks").json()["items"] == []
    assert post.rows() == []


def test_another_accounts_deliveries_do_not_exist(owner, stranger, sessions, account, post):
    owner.create()
    job_id = make_job(sessions, account, webhook_url=URL)
    cancel(sessions, account, job_id)
    for target in (post.rows()[0].id, uuid4(), "nonsense"):
        assert code(stranger.get(f"/webhooks/deliveries/{target}")) == (404, "not_found")
        assert code(stranger.post(f"/webhooks/deliveries/{target}/replay")) == (404, "not_found")
    assert stranger.get("/webhooks", params={"job_id": str(job_id)}).json()["items"] == []


def test_a_stranger_without_a_key_learns_nothing(http):
    for method, path in (("get", "/webhooks"), ("post", "/webhooks"), ("get", f"/webhooks/{MISSING}")):
        assert code(http.request(method, path)) == (401, "unauthenticated")
