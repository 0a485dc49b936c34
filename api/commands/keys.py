"""`duolora keys`: API keys, over HTTP where a service is named, else in the database of DATABASE_URL.

Over HTTP the account is that of the key in DUOLORA_API_KEY, which needs the scope `admin`. The first key of an account,
and its quotas, are made in the database.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from api.accounts import command
from api.commands.connection import URL_VARIABLE, USAGE, Group, online

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from api.client import Client, Key
    from api.commands.connection import Act
    from api.commands.screen import Screen

    Run = Callable[[argparse.Namespace], int]

DAY_S = 86_400
_OF_DATABASE = ("account", "max_priority", "max_running", "max_queued", "max_stored_bytes")
_KEY = {
    "id": lambda key: key.id,
    "label": lambda key: key.label,
    "state": lambda key: key.state,
    "scopes": lambda key: key.scopes,
    "created": lambda key: key.created_at,
    "last used": lambda key: key.last_used_at,
    "expires": lambda key: key.expires_at,
    "replaced by": lambda key: key.rotated_to,
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` to the `duolora` command."""
    group = Group(commands, "keys", "make, list, replace and revoke API keys")
    group.parser.description = __doc__
    listing = group.verb("list", "list keys", _list)
    listing.add_argument("--ended", action="store_true", help="over HTTP: also those that are expired or revoked")
    listing.set_defaults(run=_either(_list, command.list_all))
    group.verb("show", "show one key (over HTTP)", _show, "id").set_defaults(run=_either(_show, None))
    create = group.verb("create", "make a key and print it, this once", _create)
    create.set_defaults(run=_either(_create, command.create))
    command.create_options(create)
    rotate = group.verb("rotate", "replace a key (over HTTP); prints the new one, this once", _rotate, "id")
    rotate.add_argument("--overlap-hours", type=float, default=24, metavar="N", help="default %(default)s")
    rotate.set_defaults(run=_either(_rotate, None))
    revoke = group.verb("revoke", "make a key useless, for good", _revoke, "id")
    revoke.set_defaults(run=_either(_revoke, command.revoke))


def _either(act: Act, in_database: Run | None) -> Run:
    """Return a command that speaks to the service if one is named, else to the database."""

    def run(arguments: argparse.Namespace) -> int:
        if arguments.url or os.environ.get(URL_VARIABLE):
            alien = [name for name in _OF_DATABASE if getattr(arguments, name, None) is not None]
            if alien:
                option = alien[0].replace("_", "-")
                print(f"duolora: --{option} is for the database: unset {URL_VARIABLE}", file=sys.stderr)
                return USAGE
            return online(act)(arguments)
        if in_database is None:
            print(f"duolora: this goes over HTTP: name the service by --url or {URL_VARIABLE}", file=sys.stderr)
            return USAGE
        return in_database(arguments)

    return run


def _list(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    screen.records(client.keys(ended=arguments.ended), _KEY)


def _show(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    screen.record(client.key(arguments.id), _KEY)


def _create(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    made = client.create_key(label=arguments.label, scopes=arguments.scope, expires_in_days=arguments.days)
    _told_once(made, screen)


def _rotate(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _told_once(client.rotate_key(arguments.id, overlap_s=int(arguments.overlap_hours * 3600)), screen)


def _told_once(made: Key, screen: Screen) -> None:
    screen.line(made, str(made.key))
    screen.remark(f"key {made.id}: {', '.join(made.scopes)}. It is not shown again.")


def _revoke(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    client.revoke_key(arguments.id)
    screen.document({"id": arguments.id, "revoked": True}, f"key {arguments.id} is revoked")
