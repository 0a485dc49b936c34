"""`duolora keys` on a real database."""

import argparse

import pytest
from sqlalchemy import select

from api.accounts.models import Account
from api.accounts.service import authenticate
from api.commands.keys import register
from api.db import transaction
from api.errors import Unauthenticated
from tests.support.vault import SECRET_KEYS


@pytest.fixture
def run(database_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("SECRET_KEYS", SECRET_KEYS)
    monkeypatch.delenv("DUOLORA_URL", raising=False)
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())

    def run(*words):
        arguments = parser.parse_args(["keys", *words])
        return arguments.run(arguments)

    return run


def test_create_prints_a_working_key_alone_on_standard_output(run, sessions, capsys):
    assert run("create", "--account", "studio", "--label", "laptop") == 0
    output = capsys.readouterr()
    assert output.out.count("\n") == 1
    authenticate(sessions, output.out.strip())
    assert "whsec_" in output.err


@pytest.mark.parametrize(("keys", "said"), [(None, "SECRET_KEYS: Field required"), ("short", "fewer than 32")])
def test_create_says_what_it_lacks(run, monkeypatch, keys, said):
    monkeypatch.delenv("SECRET_KEYS") if keys is None else monkeypatch.setenv("SECRET_KEYS", keys)
    with pytest.raises(SystemExit, match=said):
        run("create")


def test_create_does_not_break_off_in_the_middle_where_the_accounts_secret_cannot_be_opened(run, monkeypatch):
    run("create", "--account", "studio")
    monkeypatch.setenv("SECRET_KEYS", "another key" * 4)
    with pytest.raises(SystemExit, match="which SECRET_KEYS lacks"):
        run("create", "--account", "studio")


def test_create_sets_the_accounts_quotas_and_leaves_those_not_named(run, sessions):
    def bounds():
        with transaction(sessions) as session:
            owner = session.scalars(select(Account)).one()
            return owner.max_running_jobs, owner.max_queued_jobs, owner.max_stored_bytes

    run("create", "--max-running", "2", "--max-queued", "0")
    assert bounds() == (2, 0, None)
    run("create", "--max-stored-bytes", "1000", "--max-queued", "none")
    assert bounds() == (2, None, 1000)
    with pytest.raises(SystemExit):
        run("create", "--max-running", "-1")


def test_list_shows_no_secret_and_revoke_ends_a_key(run, sessions, capsys):
    run("create", "--account", "studio", "--label", "laptop")
    key = capsys.readouterr().out.strip()
    key_id, secret = key.split("_")[2:4]
    assert run("list") == 0
    line = capsys.readouterr().out
    assert key_id in line
    assert "studio  active" in line
    assert "laptop" in line
    assert secret not in line
    assert run("revoke", key_id) == 0
    with pytest.raises(Unauthenticated):
        authenticate(sessions, key)
    run("list")
    assert "revoked" in capsys.readouterr().out


def test_revoking_nothing_is_an_error(run, capsys):
    assert run("revoke", "nobody") == 1
    assert "no key nobody" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("list",), ("create",), ("revoke", "x")])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        (None, "DATABASE_URL: Field required"),
        ("nonsense", "DATABASE_URL: not of the form"),
        ("postgresql+psycopg://nobody:swordfish@127.0.0.1:1/none", "cannot be used: connection failed"),
    ],
    ids=["not set", "nonsense", "unreachable"],
)
def test_without_a_database_one_line_says_so(run, words, url, told, monkeypatch):
    if url is None:
        monkeypatch.delenv("DATABASE_URL")
    else:
        monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SystemExit) as ended:  # a text: Python prints it on standard error and ends with status 1
        run(*words)
    assert ended.value.code.startswith("duolora: ")
    assert told in ended.value.code
    assert "\n" not in ended.value.code
    assert "swordfish" not in ended.value.code


def test_a_database_without_tables_is_one_line_too(run, empty_database_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    with pytest.raises(SystemExit, match="does not exist"):
        run("list")
