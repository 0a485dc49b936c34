"""Who may enter."""

import hashlib
from datetime import timedelta

import pytest
from sqlalchemy import event, func, select, update

from api.accounts import keys, repository
from api.accounts.models import Account, ApiKey
from api.accounts.service import authenticate, issue_key
from api.db import transaction
from api.errors import Unauthenticated


def key_row(sessions, key_id):
    with transaction(sessions) as session:
        return session.get(ApiKey, key_id)


def test_a_key_opens_its_account(sessions):
    issued = issue_key(sessions, account="mine", label="laptop")
    caller = authenticate(sessions, issued.text)
    with transaction(sessions) as session:
        assert session.get(Account, caller.account_id).name == "mine"
    assert caller.key_id == issued.id


def test_only_a_hash_is_kept(sessions):
    issued = issue_key(sessions, account="mine")
    secret = keys.parse(issued.text).secret
    row = key_row(sessions, issued.id)
    assert row.secret_sha256 == hashlib.sha256(secret.encode()).digest()
    assert all(secret not in str(getattr(row, column.key)) for column in ApiKey.__table__.columns)


def test_keys_of_one_name_share_account_and_signing_secret(sessions):
    first, second = issue_key(sessions, account="mine"), issue_key(sessions, account="mine")
    assert first.webhook_secret == second.webhook_secret
    assert first.id != second.id
    assert issue_key(sessions, account="theirs").webhook_secret != first.webhook_secret
    with transaction(sessions) as session:
        assert session.scalar(select(func.count()).select_from(Account)) == 2


def test_a_malformed_key_never_reaches_the_database(sessions, engine):
    statements = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    for text in ("", "nonsense", keys.generate().text[:-1]):
        with pytest.raises(Unauthenticated, match="malformed"):
            authenticate(sessions, text)
    assert statements == []


def test_a_well_formed_key_nobody_issued_is_refused(sessions):
    with pytest.raises(Unauthenticated, match="unknown"):
        authenticate(sessions, keys.generate().text)


def test_the_right_id_with_another_secret_is_refused(sessions):
    issued = issue_key(sessions, account="mine")
    with pytest.raises(Unauthenticated):
        authenticate(sessions, keys.KeyParts(issued.id, keys.generate().secret).text)


def test_a_revoked_key_is_refused_at_once(sessions):
    issued = issue_key(sessions, account="mine")
    with transaction(sessions) as session:
        assert repository.revoke_key(session, issued.id)
    first = key_row(sessions, issued.id).revoked_at
    with pytest.raises(Unauthenticated):
        authenticate(sessions, issued.text)
    with transaction(sessions) as session:
        assert repository.revoke_key(session, issued.id)
        assert not repository.revoke_key(session, "nobody")
    assert key_row(sessions, issued.id).revoked_at == first


def test_an_expired_key_is_refused(sessions):
    issued = issue_key(sessions, account="mine", lifetime=timedelta(days=1))
    authenticate(sessions, issued.text)
    with transaction(sessions) as session:
        session.execute(update(ApiKey).values(expires_at=func.now() - timedelta(seconds=1)))
    with pytest.raises(Unauthenticated):
        authenticate(sessions, issued.text)


def test_the_last_use_is_noted_but_not_at_every_call(sessions):
    issued = issue_key(sessions, account="mine")
    assert key_row(sessions, issued.id).last_used_at is None
    authenticate(sessions, issued.text)
    first = key_row(sessions, issued.id).last_used_at
    assert first is not None
    authenticate(sessions, issued.text)
    assert key_row(sessions, issued.id).last_used_at == first
    with transaction(sessions) as session:
        session.execute(update(ApiKey).values(last_used_at=func.now() - timedelta(hours=1)))
    authenticate(sessions, issued.text)
    assert key_row(sessions, issued.id).last_used_at >= first


def test_a_failed_attempt_is_no_use(sessions):
    issued = issue_key(sessions, account="mine")
    with pytest.raises(Unauthenticated):
        authenticate(sessions, keys.KeyParts(issued.id, keys.generate().secret).text)
    assert key_row(sessions, issued.id).last_used_at is None


def test_the_bound_of_priorities_is_the_accounts(sessions):
    issued = issue_key(sessions, account="mine", max_priority=5)
    assert authenticate(sessions, issued.text).max_priority == 5
    assert authenticate(sessions, issue_key(sessions, account="mine").text).max_priority == 5
