"""Secrets of webhooks at rest."""

import base64

import pytest
from sqlalchemy import select, text, update

from api.accounts.models import Account
from api.accounts.service import issue_key
from api.db import session_factory, transaction
from api.vault import PREFIX, Vault
from api.webhooks.models import DeliveryState, WebhookDelivery, WebhookEndpoint
from api.webhooks.repository import copy_job_endpoint, take_due
from api.webhooks.sealing import seal_again
from api.webhooks.signing import make_secret
from tests.api.factories import make_job
from tests.api.webhooks.conftest import HOLD
from tests.support.vault import SECRET_KEYS, VAULT

NEW = "new " * 8
COLUMNS = (Account.webhook_secret, WebhookEndpoint.secret, WebhookEndpoint.previous_secret)


def stored(sessions):
    """What lies in the database of all secrets."""
    with sessions() as session:
        return [each for column in COLUMNS for each in session.scalars(select(column)) if each is not None]


def make_all(caller, sessions):
    """One secret of each sort: the account's, an endpoint's with the one before, a job's; returns them."""
    hook = caller.post("/webhooks", json={"url": "https://example.org/hook"}).json()
    rotated = caller.post(f"/webhooks/{hook['id']}/rotate").json()
    own = make_secret()
    caller.submit(params={"webhook_url": "https://example.org/job", "webhook_secret": own, "webhook_events": []})
    return {caller.key.webhook_secret, hook["secret"], rotated["secret"], own}


def test_none_lies_there_in_the_open(caller, sessions):
    secrets = make_all(caller, sessions)
    assert all(each.startswith(PREFIX) for each in stored(sessions))
    assert {VAULT.open(each) for each in stored(sessions)} == secrets
    with sessions() as session:
        for table in session.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")):
            everything = str(session.execute(text(f'TABLE "{table}"')).all())
            for secret in secrets:
                assert secret not in everything
                assert base64.b64decode(secret.removeprefix("whsec_")).hex() not in everything


def test_plain_ones_of_before_sign_and_are_sealed_by_and_by(caller, sessions, engine):
    make_all(caller, sessions)
    plain = make_secret()
    with transaction(sessions) as session:
        session.execute(update(Account).values(webhook_secret=plain))
        session.execute(update(WebhookEndpoint).values(secret=None))
        endpoint = session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.job_id.is_(None))).one()
        endpoint.previous_secret = None
    caller.post(f"/webhooks/{endpoint.id}/ping")
    with transaction(sessions) as session:
        assert [due.secrets for due in take_due(session, limit=9, hold=HOLD) if due.job_id is None] == [(plain,)]
        assert seal_again(session, limit=9) == 1
        assert seal_again(session, limit=9) == 0
    assert [VAULT.open(each) for each in stored(sessions)] == [plain]
    assert plain not in stored(sessions)
    assert issue_key(sessions, account="mine").webhook_secret == plain


def test_a_key_is_replaced_without_anything_being_lost(caller, sessions, engine):
    secrets = make_all(caller, sessions)
    both = session_factory(engine, Vault([NEW, SECRET_KEYS]))
    with transaction(both) as session:
        assert seal_again(session, limit=2) == 4  # of a kind
        assert seal_again(session, limit=2) == 0
    only = Vault([NEW])
    assert {only.open(each) for each in stored(sessions)} == secrets


def test_what_cannot_be_opened_stays_and_its_deliveries_wait(caller, sessions, engine, caplog):
    hook = caller.post("/webhooks", json={"url": "https://example.org/hook"}).json()
    caller.post(f"/webhooks/{hook['id']}/ping")
    before = stored(sessions)
    stranger = session_factory(engine, Vault([NEW]))
    with transaction(stranger) as session:
        assert seal_again(session, limit=9) == 0
        assert take_due(session, limit=9, hold=HOLD) == []
    assert stored(sessions) == before
    assert "which SECRET_KEYS lacks" in caplog.text
    with transaction(sessions) as session:
        [delivery] = session.scalars(select(WebhookDelivery))
        assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, 0)
        assert "cannot open the secret" in delivery.last_error


def test_the_new_secret_signs_alone_while_the_one_before_cannot_be_opened(caller, sessions, engine, caplog):
    hook = caller.post("/webhooks", json={"url": "https://example.org/hook"}).json()
    rotated = caller.post(f"/webhooks/{hook['id']}/rotate").json()
    with transaction(sessions) as session:
        endpoint = session.scalars(select(WebhookEndpoint)).one()
        endpoint.previous_secret = Vault([NEW]).seal(hook["secret"])
    caller.post(f"/webhooks/{hook['id']}/ping")
    with transaction(sessions) as session:
        [due] = take_due(session, limit=9, hold=HOLD)
    assert due.secrets == (rotated["secret"],)
    assert "which SECRET_KEYS lacks" in caplog.text


def test_a_retry_of_a_job_takes_its_secret_with_it_unopened(caller, sessions, engine):
    own = make_secret()
    params = {"webhook_url": "https://example.org/job", "webhook_secret": own}
    job = caller.submit(params=params).json()
    with transaction(sessions) as session:
        account = session.scalars(select(Account.id).where(Account.name == "mine")).one()
    other = make_job(sessions, account)
    with transaction(session_factory(engine)) as session:
        copy_job_endpoint(session, job_id=job["id"], to_job_id=other)
    with sessions() as session:
        copied = session.scalars(select(WebhookEndpoint.secret).where(WebhookEndpoint.job_id == other)).one()
    assert VAULT.open(copied) == own


@pytest.mark.parametrize("path", ["/webhooks", "/jobs"])
def test_no_answer_shows_one_again(caller, sessions, path):
    secrets = make_all(caller, sessions)
    for answer in (caller.get(path), *(caller.get(f"{path}/{row['id']}") for row in caller.get(path).json()["items"])):
        assert not any(secret in answer.text for secret in [*secrets, *stored(sessions)])
