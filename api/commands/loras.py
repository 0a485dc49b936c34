"""`duolora loras`: the account's library of LoRAs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from api.commands.connection import Group
from api.commands.screen import size

if TYPE_CHECKING:
    import argparse

    from api.client import Client, Lora
    from api.commands.screen import Screen

FORMATS = ("diffusers", "kohya", "peft", "other")
_LINES = {
    "id": lambda lora: lora.id,
    "name": lambda lora: lora.name,
    "role": lambda lora: lora.role,
    "base": lambda lora: lora.base_model,
    "rank": lambda lora: lora.rank,
    "kept": lambda lora: lora.kept,
    "tags": lambda lora: lora.tags,
    "created": lambda lora: lora.created_at,
}
_MORE = {
    "trigger": lambda lora: lora.trigger,
    "source": lambda lora: lora.source,
    "job": lambda lora: lora.job_id,
    "files": lambda lora: "\n".join(f"{each.format}  {each.filename}  {size(each.bytes)}" for each in lora.files),
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `loras` to the `duolora` command."""
    group = Group(commands, "loras", "find, bring, keep and fetch LoRAs of a service's library")
    listing = group.verb("list", "list LoRAs, newest first", _list)
    listing.add_argument("--role", action="append", default=[], help="content, style, merged or other; repeatable")
    listing.add_argument("--tag", action="append", default=[], help="only those with this tag; repeatable")
    listing.add_argument("--job", metavar="ID", help="only those that this job made")
    listing.add_argument("--base-model", help="only those for this base")
    listing.add_argument("--limit", type=int, default=20, help="most of them (default %(default)s)")
    group.verb("show", "show one LoRA with its files", _show, "id")
    sending = group.verb("upload", "send a LoRA that was trained elsewhere; prints its id", _upload, "file")
    for name, about in (
        ("name", "left out, that of the file"),
        ("role", "content, style, merged or other"),
        ("base-model", "what it was trained on"),
        ("trigger", "words that call it"),
    ):
        sending.add_argument(f"--{name}", help=about)
    sending.add_argument("--tag", action="append", default=[], help="may be repeated")
    group.verb("rename", "give a LoRA another name", _rename, "id", "name")
    tagging = group.verb("tag", "give a LoRA these tags in place of those it has", _tag, "id")
    tagging.add_argument("tags", nargs="*")
    group.verb("keep", "let a job's LoRA stay when the job goes", _keep, "id")
    group.verb("delete", "delete a LoRA with its own files", _delete, "id")
    fetch = group.verb("download", "fetch a LoRA's files, each checked", _download, "id")
    fetch.add_argument("--format", choices=FORMATS, help="only the file whose keys are named so")
    fetch.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="default: here")


def _list(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    found = client.loras(
        role=arguments.role,
        tag=arguments.tag,
        job_id=arguments.job,
        base_model=arguments.base_model,
        page_size=min(max(arguments.limit, 1), 100),
    )
    screen.records(list(islice(found, arguments.limit)), _LINES)


def _show(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _one(client.lora(arguments.id), screen)


def _one(lora: Lora, screen: Screen) -> None:
    screen.record(lora, _LINES | _MORE)


def _upload(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    with screen.counting("sending") as see:
        made = client.upload_lora(
            arguments.file,
            name=arguments.name,
            tags=arguments.tag,
            role=arguments.role,
            base_model=arguments.base_model,
            trigger=arguments.trigger,
            on_upload=see,
        )
    screen.line(made, made.id)


def _rename(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _one(client.update_lora(arguments.id, name=arguments.name), screen)


def _tag(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _one(client.update_lora(arguments.id, tags=arguments.tags), screen)


def _keep(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _one(client.update_lora(arguments.id, keep=True), screen)


def _delete(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    client.delete_lora(arguments.id)
    screen.document({"id": arguments.id, "deleted": True}, f"{arguments.id} deleted")


def _download(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    with screen.counting("fetching") as see:
        formats = arguments.format or ()
        files = client.download_lora(arguments.id, arguments.out, formats=formats, on_download=see)
    screen.document({name: str(path) for name, path in files.items()}, "\n".join(map(str, files.values())))
