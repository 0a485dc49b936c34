"""The account of whoever runs the local stack: its key is made once and checked at every start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.accounts.service import authenticate, issue_key
from api.db import make_engine, session_factory
from api.errors import Unauthenticated
from deploy.local.data_folder import OwnerKey

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

    from api.vault import Vault
    from deploy.local.data_folder import Secrets

ACCOUNT = "default"
LABEL = "duolora up"


def owner_key(database_url: str, kept: Secrets, vault: Vault) -> OwnerKey:
    """Return the remembered key, or a new one where the database does not know it (a new database, or revoked)."""
    engine = make_engine(database_url, application_name="duolora-up")
    sessions = session_factory(engine, vault)
    try:
        owner = kept.owner
        if owner is None or not _works(sessions, owner.api_key):
            issued = issue_key(sessions, account=ACCOUNT, label=LABEL)
            owner = kept.owner = OwnerKey(api_key=issued.text, webhook_secret=issued.webhook_secret)
        return owner
    finally:
        engine.dispose()


def _works(sessions: sessionmaker[Session], api_key: str) -> bool:
    try:
        authenticate(sessions, api_key)
    except Unauthenticated:
        return False
    return True
