"""`duolora uploads`: pictures that come before the job they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.commands.connection import Group
from api.commands.jobs import UPLOAD

if TYPE_CHECKING:
    import argparse

    from api.client import Client
    from api.commands.screen import Screen

_LINES = {
    "id": lambda upload: upload.id,
    "state": lambda upload: upload.state,
    "kind": lambda upload: upload.kind,
    "bytes": lambda upload: upload.bytes,
    "sha256": lambda upload: upload.sha256,
    "size": lambda upload: upload.width and f"{upload.width} x {upload.height} px",
    "expires": lambda upload: upload.expires_at,
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `uploads` to the `duolora` command."""
    group = Group(commands, "uploads", "bring pictures to a service before the job they are for")
    about = f"send pictures; prints what `jobs submit` takes for each, {UPLOAD}ID"
    sending = group.verb("create", about, _create)
    sending.add_argument("files", nargs="+", metavar="FILE")
    sending.add_argument("--by-link", action="store_true", help="to the object store itself, past the service")
    group.verb("show", "show what is kept of an upload, and until when", _show, "id")
    group.verb("delete", "delete an upload before its time", _delete, "id")


def _create(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    for file in arguments.files:
        with screen.counting("sending") as see:
            made = client.upload_by_link(file) if arguments.by_link else client.upload(file, on_upload=see)
        screen.line(made, f"{UPLOAD}{made.id}")


def _show(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    screen.record(client.read_upload(arguments.id.removeprefix(UPLOAD)), _LINES)


def _delete(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    upload_id = arguments.id.removeprefix(UPLOAD)
    client.delete_upload(upload_id)
    screen.document({"id": upload_id, "deleted": True}, f"{upload_id} deleted")
