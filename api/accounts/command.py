"""`duolora keys` without a service: makes, lists and revokes keys in the database of DATABASE_URL."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from sqlalchemy.orm import Session, sessionmaker

DEFAULT_ACCOUNT = "default"
_ANY = -1
"""Stands for no bound, where None stands for one that is left as it is."""
_QUOTAS = {
    "--max-running": "most jobs of the account that run at once",
    "--max-queued": "most jobs of the account that wait to be begun",
    "--max-stored-bytes": "most bytes of pictures and results that are kept for the account",
}


def create_options(create: argparse.ArgumentParser) -> None:
    """Add what a new key, and its account, may have."""
    create.add_argument("--label", default="", help="what the key is for")
    create.add_argument("--scope", action="append", help="what it may do, as jobs:read or admin; may be repeated")
    create.add_argument("--days", type=int, metavar="N", help="days until it expires; never if left out")
    own = create.add_argument_group("in the database")
    own.add_argument("--account", help=f"made if there is none of that name ({DEFAULT_ACCOUNT})")
    own.add_argument("--max-priority", type=int, metavar="N", help="highest priority the account's jobs may ask for")
    for option, bounded in _QUOTAS.items():
        own.add_argument(option, type=_quota, metavar="N", help=f"{bounded}, all keys together; `none` for any")


def create(arguments: argparse.Namespace) -> int:
    """Make a key, and its account if need be; print it."""
    from api.accounts.scopes import Scope  # noqa: PLC0415 - every `duolora` command loads this module
    from api.accounts.service import issue_key  # noqa: PLC0415

    unknown = set(arguments.scope or ()) - set(Scope)
    if unknown:
        print(f"duolora: there is no scope {unknown.pop()!r}; known: {', '.join(Scope)}", file=sys.stderr)
        return 2
    scopes = [Scope(name) for name in arguments.scope or [Scope.ADMIN]]
    with _sessions(sealing=True) as sessions:
        issued = issue_key(
            sessions,
            account=arguments.account or DEFAULT_ACCOUNT,
            label=arguments.label,
            scopes=scopes,
            lifetime=None if arguments.days is None else timedelta(days=arguments.days),
            max_priority=arguments.max_priority,
            quotas={
                column: None if value == _ANY else value
                for column, value in (
                    ("max_running_jobs", arguments.max_running),
                    ("max_queued_jobs", arguments.max_queued),
                    ("max_stored_bytes", arguments.max_stored_bytes),
                )
                if value is not None
            },
        )
    print(issued.text)
    print(f"account {issued.account}, key {issued.id}. The key is not shown again.", file=sys.stderr)
    print(f"webhooks of the account are signed with {issued.webhook_secret}", file=sys.stderr)
    return 0


def list_all(_: argparse.Namespace) -> int:
    """List the keys of all accounts."""
    from api.accounts.repository import list_keys  # noqa: PLC0415 - see create
    from api.db import transaction  # noqa: PLC0415

    with _sessions() as sessions, transaction(sessions) as session:
        for key, account in list_keys(session):
            used = "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H:%M}Z"
            state = "revoked" if key.revoked_at else "active"
            scopes = ",".join(key.scopes)
            print(f"{key.id}  {account.name}  {state}  last used {used}  {scopes}  {key.label}".rstrip())
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Make a key useless."""
    from api.accounts.repository import revoke_key  # noqa: PLC0415 - see create
    from api.db import transaction  # noqa: PLC0415

    with _sessions() as sessions, transaction(sessions) as session:
        if revoke_key(session, arguments.id):
            print(f"key {arguments.id} is revoked")
            return 0
    print(f"duolora: there is no key {arguments.id}", file=sys.stderr)
    return 1


def _quota(text: str) -> int:
    """Read a bound of 0 or more, or the word for none.

    Raises:
        ValueError: it is neither.
    """
    if text == "none":
        return _ANY
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


@contextmanager
def _sessions(*, sealing: bool = False) -> Iterator[sessionmaker[Session]]:
    """Open the database of DATABASE_URL for one command.

    Args:
        sealing: whether it has to do with secrets, which needs SECRET_KEYS.

    Raises:
        SystemExit: it cannot be used; one line says why, and the status is 1.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - see create
    from sqlalchemy.exc import ArgumentError, DBAPIError  # noqa: PLC0415

    from api.db import make_engine, session_factory  # noqa: PLC0415
    from api.settings import DatabaseSettings, SealSettings  # noqa: PLC0415
    from api.vault import CannotOpen  # noqa: PLC0415

    prefix = "DATABASE"
    try:
        settings = DatabaseSettings()
        prefix = "SECRET"
        vault = SealSettings().vault() if sealing else None
    except ValidationError as error:
        first = error.errors()[0]
        raise SystemExit(f"duolora: {prefix}_{str(first['loc'][0]).upper()}: {first['msg']}") from error
    try:
        engine = make_engine(settings.url.get_secret_value(), application_name="duolora-keys")
    except ArgumentError as error:
        raise SystemExit("duolora: DATABASE_URL: not of the form postgresql+psycopg://user@host/name") from error
    try:
        yield session_factory(engine, vault)
    except CannotOpen as error:
        raise SystemExit(f"duolora: {error}") from error
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise SystemExit(f"duolora: the database of DATABASE_URL cannot be used: {reason}") from error
    finally:
        engine.dispose()
