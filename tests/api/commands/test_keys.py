"""`duolora keys` against a running stack."""

import pytest

from api.accounts.service import authenticate
from api.db import make_engine, session_factory

pytestmark = [pytest.mark.xdist_group("commands"), pytest.mark.timeout(120)]


def test_a_key_from_its_making_to_its_end(duolora, monkeypatch):
    made = duolora("keys", "create", "--label", "CI", "--scope", "jobs:read", "--days", 3)
    assert (made.status, made.out.count("\n")) == (0, 1)
    assert "It is not shown again" in made.err
    key = made.out.strip()
    key_id = key.split("_")[2]
    with monkeypatch.context() as patch:
        patch.setenv("DUOLORA_API_KEY", key)
        assert duolora("jobs", "list").status == 0
        refused = duolora("keys", "list")
        assert refused.status == 3
        assert "insufficient_scope" in refused.err
    row = next(line for line in duolora("keys", "list").out.splitlines() if line.startswith(key_id))
    assert "CI" in row
    assert "active" in row
    new = duolora("keys", "rotate", key_id, "--overlap-hours", 1, "--json").document()
    assert new["scopes"] == ["jobs:read"]
    assert duolora("keys", "rotate", key_id).status == 5
    assert f"replaced by  {new['id']}" in duolora("keys", "show", key_id).out
    assert duolora("keys", "revoke", new["id"]).out == f"key {new['id']} is revoked\n"
    ids = [each["id"] for each in duolora("keys", "list", "--json").document()]
    assert key_id in ids
    assert new["id"] not in ids
    assert new["id"] in duolora("keys", "list", "--ended").out


def test_without_a_service_keys_are_made_in_the_database(duolora, stack, monkeypatch):
    for name in ("DATABASE_URL", "SECRET_KEYS"):
        monkeypatch.setenv(name, stack.env[name])
    account = ("--account", "studio", "--scope", "jobs:read")
    there = duolora("keys", "create", *account)
    assert (there.status, there.out) == (2, "")
    assert "--account is for the database: unset DUOLORA_URL" in there.err
    monkeypatch.delenv("DUOLORA_URL")
    made = duolora("keys", "create", *account)
    assert made.status == 0
    engine = make_engine(stack.env["DATABASE_URL"])
    assert authenticate(session_factory(engine), made.out.strip()).scopes == {"jobs:read"}
    engine.dispose()
    assert "studio  active  last used" in duolora("keys", "list").out
    assert duolora("keys", "create", "--scope", "everything").status == 2
    assert duolora("keys", "rotate", "x").status == 2
