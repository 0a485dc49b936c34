"""`duolora keys` on a real database."""

import argparse

import pytest

from api.accounts.command import register
from api.accounts.service import authenticate
from api.errors import Unauthenticated


@pytest.fixture
def run(database_url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database_url)
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
