"""The key that the local stack hands to its owner: made once, checked at every start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.accounts.service import authenticate, issue_key
from api.db import make_engine, session_factory
from api.errors import Unauthenticated

if TYPE_CHECKING:
    from deploy.local.data_folder import Secrets

ACCOUNT = "default"
LABEL = "duolora up"


def remembered_key(database_url: str, kept: Secrets) -> str:
    """Return the remembered key, or a new one when this database does not know it (another database, or revoked)."""
    engine = make_engine(database_url, application_name="duolora-up")
    sessions = session_factory(engine)
    try:
        if kept.api_key is not None:
            try:
                authenticate(sessions, kept.api_key)
            except Unauthenticated:
                pass
            else:
                return kept.api_key
        issued = issue_key(sessions, account=ACCOUNT, label=LABEL)
        kept.api_key = issued.text
        return issued.text
    finally:
        engine.dispose()
