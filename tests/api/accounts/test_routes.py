"""Keys over HTTP: made, listed, replaced with an overlap, revoked."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, text, update

from api.accounts import key_service
from api.accounts.models import ApiKey
from api.accounts.service import IssuedKey
from api.db import make_engine, transaction
from tests.api.factories import Caller


@pytest.fixture
def caller(serve, sessions, caller):
    """An admin, of a process that remembers keys for longer than any test takes."""
    return Caller(serve(key_cache_s=600), caller.key)


def made(caller, **wish):
    answer = caller.post("/keys", json=wish)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/keys/{answer.json()['id']}"
    return answer.json()


def holder(caller, key):
    return Caller(caller._http, IssuedKey(id=key["id"], text=key["key"], account="mine", webhook_secret=""))


def instant(words):
    return datetime.fromisoformat(words)


def listed(caller, **query):
    return [key["id"] for key in caller.get("/keys", params=query).json()["items"]]


def test_a_new_key_does_what_its_scopes_say_and_is_shown_once(caller):
    key = made(caller, label="CI", scopes=["jobs:read", "jobs:write"], expires_in_days=2)
    assert (key["scopes"], key["state"], key["last_used_at"], key["is_current"]) == (
        ["jobs:write"],
        "active",
        None,
        False,
    )
    assert instant(key["expires_at"]) - instant(key["created_at"]) == pytest.approx(
        timedelta(days=2), abs=timedelta(seconds=5)
    )
    new = holder(caller, key)
    assert new.get("/jobs").status_code == 200
    assert new.submit(params={}).status_code == 202
    assert new.get("/webhooks").status_code == 403
    read = caller.get(f"/keys/{key['id']}").json()
    assert read["last_used_at"] is not None
    assert "key" not in read
    assert key["key"].startswith(read["prefix"])


def test_one_for_which_no_scopes_are_named_does_everything_but_keys(caller):
    new = holder(caller, made(caller))
    assert {new.get(path).status_code for path in ("/jobs", "/webhooks", "/recipes")} == {200}
    assert new.get("/keys").status_code == 403


def test_an_admins_key_manages_keys_and_knows_itself(caller):
    admin = holder(caller, made(caller, scopes=["admin", "jobs:read"]))
    items = admin.get("/keys").json()["items"]
    assert [(key["scopes"], key["is_current"]) for key in items] == [(["admin"], True), (["admin"], False)]


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["jobs"]}, "/scopes/0"),
        ({"expires_in_days": 0}, "/expires_in_days"),
        ({"label": "x" * 201}, "/label"),
        ({"account": "theirs"}, "/account"),
    ],
)
def test_a_wish_that_cannot_be_met_names_the_field(caller, wish, pointer):
    answer = caller.post("/keys", json=wish)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_a_replaced_key_works_beside_the_new_one_until_the_overlap_is_over(caller, sessions):
    old = made(caller, label="CI", scopes=["jobs:read"], expires_in_days=30)
    answer = caller.post(f"/keys/{old['id']}/rotate", json={"overlap_seconds": 3600})
    assert answer.status_code == 201
    new = answer.json()
    assert (new["label"], new["scopes"], new["state"]) == ("CI", ["jobs:read"], "active")
    assert instant(new["expires_at"]) - instant(new["created_at"]) == pytest.approx(
        timedelta(days=30), abs=timedelta(seconds=5)
    )
    assert {holder(caller, key).get("/jobs").status_code for key in (old, new)} == {200}
    read = caller.get(f"/keys/{old['id']}").json()
    assert (read["state"], read["rotated_to"]) == ("rotated", new["id"])
    assert instant(read["expires_at"]) - instant(new["created_at"]) == pytest.approx(
        timedelta(hours=1), abs=timedelta(seconds=5)
    )
    again = caller.post(f"/keys/{old['id']}/rotate")
    assert (again.status_code, again.json()["code"]) == (409, "key_not_active")
    with transaction(sessions) as session:
        session.execute(update(ApiKey).where(ApiKey.id == old["id"]).values(expires_at=func.now()))
    assert caller.get(f"/keys/{old['id']}").json()["state"] == "expired"


def test_without_an_overlap_the_old_key_ends_at_once_even_where_it_is_remembered(caller):
    old = made(caller)
    assert holder(caller, old).get("/jobs").status_code == 200
    new = caller.post(f"/keys/{old['id']}/rotate", json={"overlap_seconds": 0}).json()
    assert holder(caller, old).get("/jobs").status_code == 401
    assert holder(caller, new).get("/jobs").status_code == 200


def test_a_key_never_lives_longer_for_being_replaced(caller):
    old = made(caller, expires_in_days=1)
    caller.post(f"/keys/{old['id']}/rotate", json={"overlap_seconds": 2 * 86_400})
    assert caller.get(f"/keys/{old['id']}").json()["expires_at"] == old["expires_at"]


def test_a_revoked_key_ends_at_once_and_is_listed_only_on_request(caller):
    key = made(caller)
    assert holder(caller, key).get("/jobs").status_code == 200
    for _ in range(2):
        assert caller.request("DELETE", f"/keys/{key['id']}").status_code == 204
    assert holder(caller, key).get("/jobs").status_code == 401
    assert listed(caller) == [caller.key.id]
    assert listed(caller, ended=True) == [key["id"], caller.key.id]
    assert caller.get(f"/keys/{key['id']}").json()["state"] == "revoked"
    assert caller.post(f"/keys/{key['id']}/rotate").json()["code"] == "key_not_active"


def test_keys_that_ended_hide_none_that_works(caller, sessions):
    with transaction(sessions) as session:
        session.execute(
            text(
                "INSERT INTO api_keys (id, account_id, prefix, secret_sha256, revoked_at)"
                " SELECT 'ended' || number, account_id, 'x', secret_sha256, now()"
                " FROM api_keys, generate_series(1, 1000) AS number"
            )
        )
    assert listed(caller) == [caller.key.id]


def test_any_key_may_revoke_itself_and_without_admin_no_other(caller):
    key, other = made(caller, scopes=["jobs:read"]), made(caller)
    new = holder(caller, key)
    refused = new.request("DELETE", f"/keys/{other['id']}")
    assert (refused.status_code, refused.json()["missing_scopes"]) == (403, ["admin"])
    assert new.get(f"/keys/{key['id']}").status_code == 403
    assert new.request("DELETE", f"/keys/{key['id']}").status_code == 204
    assert new.get("/jobs").status_code == 401
    assert listed(caller) == [other["id"], caller.key.id]


def test_another_accounts_keys_are_none(caller, stranger):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        assert stranger.request(method, f"/keys/{caller.key.id}{path}").status_code == 404
    assert listed(stranger) == [stranger.key.id]
    assert caller.get("/jobs").status_code == 200


def test_an_account_has_so_many_keys_and_no_more(caller, monkeypatch):
    monkeypatch.setattr(key_service, "MAX_KEYS", 2)
    key = made(caller)
    refused = caller.post("/keys", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_keys")
    assert caller.post(f"/keys/{key['id']}/rotate").json()["code"] == "too_many_keys"
    caller.request("DELETE", f"/keys/{key['id']}")
    made(caller)


def test_a_key_from_before_there_were_scopes_has_all_of_them(caller, database_url):
    engine = make_engine(database_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO api_keys (id, account_id, prefix, secret_sha256)"
                " SELECT 'before', account_id, 'x', secret_sha256 FROM api_keys LIMIT 1"
            )
        )
    engine.dispose()
    assert caller.get("/keys/before").json()["scopes"] == ["admin"]
