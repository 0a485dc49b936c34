"""Secrets that are sealed in the database."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.db import session_factory, transaction
from api.vault import CannotOpen, Vault, vault_of
from tests.support.vault import VAULT

OLD, NEW = "old " * 8, "new " * 8


@given(st.text())
def test_what_was_sealed_is_opened_and_does_not_show(secret):
    sealed = Vault([NEW]).seal(secret)
    assert Vault([NEW]).open(sealed) == secret
    assert sealed.isascii()
    assert len(secret) < 8 or secret not in sealed


def test_the_same_secret_is_never_sealed_the_same():
    assert VAULT.seal("x") != VAULT.seal("x")


def test_a_plain_secret_is_read_as_it_is():
    assert VAULT.open("whsec_MfKQ") == "whsec_MfKQ"


def test_the_newest_key_seals_and_all_open():
    before, after = Vault([OLD]), Vault([NEW, OLD])
    assert after.open(before.seal("x")) == "x"
    assert Vault([NEW]).open(after.seal("x")) == "x"
    assert after.seal("x").startswith(after.mark)
    assert not before.seal("x").startswith(after.mark)


def test_without_its_key_or_changed_nothing_is_opened():
    sealed = VAULT.seal("x")
    with pytest.raises(CannotOpen, match="which SECRET_KEYS lacks"):
        Vault([NEW]).open(sealed)
    with pytest.raises(CannotOpen, match="has been changed"):
        VAULT.open(sealed[:-4] + "AAAA")


@pytest.mark.parametrize("keys", [[], ["x" * 31], [NEW, "short"]])
def test_no_vault_has_a_weak_key(keys):
    with pytest.raises(ValueError, match="openssl rand"):
        Vault(keys)


def test_a_process_that_was_given_none_has_none(engine):
    with transaction(session_factory(engine)) as session, pytest.raises(LookupError):
        vault_of(session)
