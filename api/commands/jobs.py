"""`duolora jobs`: submit jobs, follow them, fetch what they made."""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.commands.checking import show_check
from api.commands.connection import Group
from api.commands.screen import names, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api.client import Client, Job
    from api.commands.screen import Screen

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""What is sent of a folder."""
KINDS = ("personalize", "train", "merge", "generate")
SIDES = ("content", "style")
_NEEDS = {
    "personalize": {"subject_class": "--class"},
    "merge": {"content_lora_id": "--content-lora", "style_lora_id": "--style-lora"},
    "generate": {"prompts": "--prompt"},
}
"""Parameters that a kind cannot do without, and their options."""
UPLOAD = "upload:"
_TEXTS = {
    "name": "a name of your choice",
    "recipe": "a complete configuration by name (see `duolora jobs recipes`)",
    "base-model": "by name",
    "merge-recipe": "how to merge, by name",
    "content-trigger": "word that will call the subject",
    "style-trigger": "word that will call the style",
    "mock-outcome": "of a mock job: succeed, fail or slow",
    "webhook-url": "told when the job ends",
    "webhook-secret": "signs that in place of the account's",
}
_NUMBERS = {
    "rank": "of both LoRAs",
    "slider": "so many pictures from all content to all style",
    "images-per-prompt": "of a job that draws",
    "resolution-px": "side of the training pictures",
    "seed": "other than the recipe's",
    "priority": "higher goes first",
    "deadline-seconds": "so long after its submission it ends",
    "retention-days": "so long after its end it is kept",
}
_LISTS = {
    "style-caption": "what a style picture shows, in the order of the files; may be repeated",
    "content-caption": "what a content picture shows, trigger included; may be repeated",
    "webhook-event": "what the webhook is told of; may be repeated",
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `jobs` to the `duolora` command."""
    group = Group(commands, "jobs", "submit jobs to a service, follow them, fetch what they made")
    _submit_options(group.verb("submit", "submit a job; prints its id", _submit))

    listing = group.verb("list", "list jobs, newest first", _list)
    listing.add_argument("--state", action="append", default=[], help="only those in this state; may be repeated")
    listing.add_argument("--kind", action="append", default=[], help="only those of this kind; may be repeated")
    listing.add_argument("--limit", type=int, default=20, help="most of them (default %(default)s)")

    group.verb("show", "show one job with its stages and files", _show, "id")
    watch = group.verb("watch", "follow a job until its end; status 6 if it does not succeed", _watch, "id")
    _wait_option(watch)
    group.verb("events", "print what happens to a job, until its end", _events, "id").add_argument(
        "--after", type=int, default=0, metavar="ID", help="only what happened after that event"
    )
    logs = group.verb("logs", "print what a job's stages wrote", _logs, "id")
    logs.add_argument("--stage", help="only this one's")
    group.verb("attempts", "list which worker tried which stage", _attempts, "id")
    for name, about in (
        ("cancel", "give a job up"),
        ("stop", "end a job early and keep what it has learnt"),
        ("retry", "try an ended job again, from its checkpoints"),
    ):
        group.verb(name, about, _decide(name), "id")
    group.verb("delete", "delete an ended job with everything it has", _delete, "id")
    fetch = group.verb("download", "fetch the files of a succeeded job, each checked", _download, "id")
    _out_option(fetch, required=False)
    group.verb("recipes", "list what the service can run", _recipes)


def _submit_options(parser: argparse.ArgumentParser) -> None:
    for side in SIDES:
        parser.add_argument(
            f"--{side}", nargs="+", default=[], metavar="FILE", help="pictures, folders of them, or upload:ID"
        )
    parser.add_argument("--kind", choices=KINDS, help=f"what is made (default {KINDS[0]})")
    parser.add_argument("--class", dest="subject_class", help="what the subject is: dog, teapot")
    parser.add_argument(
        "--content-lora", metavar="ID", dest="content_lora_id", help="of a merge: its LoRA of the subject"
    )
    parser.add_argument("--style-lora", metavar="ID", dest="style_lora_id", help="of a merge: its LoRA of the style")
    drawn = "to draw with; may be repeated"
    parser.add_argument("--lora", type=_lora, action="append", dest="loras", metavar="ID=STRENGTH", help=drawn)
    parser.add_argument("--prompt", action="append", dest="prompts", help="what to draw; may be repeated")
    parser.add_argument("--archive", type=Path, metavar="ZIP", help="all in one: content/, style/ and params.json")
    for name, about in _TEXTS.items():
        parser.add_argument(f"--{name}", help=about)
    for name, about in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, help=about)
    for name, about in _LISTS.items():
        parser.add_argument(f"--{name}", action="append", dest=name.replace("-", "_") + "s", help=about)
    parser.add_argument(
        "--engine", choices=["duolora", "mock"], help="mock: nothing is learnt, it takes a second or two"
    )
    parser.add_argument("--steps", type=_steps, action="append", metavar="PART=N", help="content, style or merge")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=JSON", help="any parameter")
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same key again is the same job")
    look = "begin nothing: show stages, time, quotas and hints; the status is that of submitting"
    parser.add_argument("--check", action="store_true", help=look)
    parser.add_argument("--watch", action="store_true", help="follow it until its end")
    _wait_option(parser)
    _out_option(parser, required=False)


def _wait_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, metavar="S", help="wait no longer; status 8 then")


def _out_option(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", required=required, help="fetch its files there")


def _steps(text: str) -> tuple[str, int]:
    part, _, count = text.partition("=")
    return part, int(count)


def _lora(text: str) -> dict[str, Any]:
    lora_id, equals, strength = text.partition("=")
    return {"lora_id": lora_id, "strength": float(strength) if equals else 1.0}


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError as error:
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=JSON") from error
        return name, value


def _pictures(given: Iterable[str]) -> list[str]:
    """Return ids of uploads and names of files as they are given, and the pictures of folders by name.

    Raises:
        argparse.ArgumentTypeError: a folder has none.
    """
    found: list[str] = []
    for each in given:
        path = Path(each)
        if each.startswith(UPLOAD) or not path.is_dir():
            found.append(each)
            continue
        inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in PICTURES)
        if not inside:
            raise argparse.ArgumentTypeError(f"{path} holds no pictures ({names(sorted(PICTURES))})")
        found += inside
    return found


def _are_uploads(arguments: argparse.Namespace) -> bool:
    return any(each.startswith(UPLOAD) for side in SIDES for each in getattr(arguments, side))


def _uploads(pictures: dict[str, list[str]]) -> dict[str, list[str]] | None:
    """Return the ids of uploads by side; None if files are sent.

    Raises:
        argparse.ArgumentTypeError: some are files and some uploads.
    """
    given = [each.startswith(UPLOAD) for of_side in pictures.values() for each in of_side]
    if not any(given):
        return None
    if not all(given):
        raise argparse.ArgumentTypeError("some pictures are files and some are uploads: upload all of them, or none")
    return {side: [each.removeprefix(UPLOAD) for each in of_side] for side, of_side in pictures.items()}


def _wishes(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {
        name: getattr(arguments, name)
        for name in (
            *(each.replace("-", "_") for each in (*_TEXTS, *_NUMBERS)),
            *(each.replace("-", "_") + "s" for each in _LISTS),
            *("kind", "engine", "subject_class", "content_lora_id", "style_lora_id", "loras", "prompts"),
        )
    }
    given["steps"] = None if arguments.steps is None else dict(arguments.steps)
    return {name: value for name, value in given.items() if value is not None} | dict(arguments.set)


def _submit(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    if arguments.check:
        _check(client, arguments, screen)
        return
    key = arguments.idempotency_key
    submission = _submission(arguments)
    with screen.counting("sending") as see:
        if arguments.archive is not None:
            job = client.submit_archive(**submission, idempotency_key=key, on_upload=see)
        elif _are_uploads(arguments):
            job = client.submit(**submission, idempotency_key=key)
        else:
            job = client.submit_files(**submission, idempotency_key=key, on_upload=see)
    if arguments.watch or arguments.out:
        screen.remark(f"job {job.id}")
        _follow(client, job.id, arguments, screen)
    else:
        screen.line(job, job.id)


def _check(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    if arguments.watch or arguments.out:
        raise argparse.ArgumentTypeError("--check begins no job: leave out --watch and --out")
    submission = _submission(arguments)
    with screen.counting("sending") as see:
        if arguments.archive is not None:
            found = client.check_archive(**submission, on_upload=see)
        elif _are_uploads(arguments):
            found = client.check(**submission)
        else:
            found = client.check_files(**submission, on_upload=see)
    show_check(found, screen)


def _submission(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what is sent: pictures and parameters, or a zip.

    Raises:
        argparse.ArgumentTypeError: an option is missing that the kind needs, or pictures come in two ways.
    """
    wishes = _wishes(arguments)
    if arguments.archive is not None:
        given = [f"--{side}" for side in SIDES if getattr(arguments, side)]
        if given:
            raise argparse.ArgumentTypeError(f"an archive has its own pictures: leave out {' and '.join(given)}")
        return {"path": arguments.archive, "params": wishes or None}
    pictures = {side: _pictures(getattr(arguments, side)) for side in SIDES}
    _check_needs(wishes.setdefault("kind", KINDS[0]), wishes)
    return {**(_uploads(pictures) or pictures), "params": wishes}


def _check_needs(kind: object, wishes: dict[str, Any]) -> None:
    for name, option in _NEEDS.get(str(kind), {}).items():
        if name not in wishes:
            raise argparse.ArgumentTypeError(f"a {kind} job needs {option}")


def _list(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    page_size = min(max(arguments.limit, 1), 100)
    found = client.jobs(state=arguments.state, kind=arguments.kind, page_size=page_size)
    screen.records(
        list(islice(found, arguments.limit)),
        {
            "id": lambda job: job.id,
            "name": lambda job: job.name,
            "kind": lambda job: job.kind,
            "state": lambda job: job.state,
            "done": lambda job: f"{job.progress.fraction:.0%}",
            "stage": lambda job: job.progress.stage,
            "engine": lambda job: job.engine,
            "created": lambda job: job.created_at,
            "took": _took,
        },
    )


def _took(job: Job) -> str | None:
    if job.started_at is None or job.finished_at is None:
        return None
    return f"{(job.finished_at - job.started_at).total_seconds():.1f} s"


def _show(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _display(client.job(arguments.id), screen)


def _display(job: Job, screen: Screen) -> None:
    screen.record(
        job,
        {
            "id": lambda job: job.id,
            "name": lambda job: job.name,
            "kind": lambda job: job.kind,
            "engine": lambda job: job.engine,
            "state": lambda job: job.state,
            "done": lambda job: f"{job.progress.fraction:.0%}",
            "stage": lambda job: job.progress.stage,
            "step": lambda job: None if job.progress.total is None else f"{job.progress.step} of {job.progress.total}",
            "loss": lambda job: job.progress.loss,
            "seconds left": lambda job: job.progress.eta_seconds,
            "place in queue": lambda job: job.progress.queue_position,
            "error": lambda job: job.error and f"{job.error.get('detail') or job.error['title']} ({job.error['code']})",
            "retry of": lambda job: job.retry_of,
            "request": lambda job: job.request_id,
            "created": lambda job: job.created_at,
            "started": lambda job: job.started_at,
            "finished": lambda job: job.finished_at,
            "expires": lambda job: job.expires_at,
            "worker seconds": lambda job: job.timings and job.timings.worker_seconds,
            "files": lambda job: (
                job.result and "\n".join(f"{each.filename}  {size(each.bytes)}" for each in job.result.artifacts)
            ),
        },
    )


def _watch(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _follow(client, arguments.id, arguments, screen)


def _follow(client: Client, job_id: str, arguments: argparse.Namespace, screen: Screen) -> None:
    with screen.following() as see:
        job = client.wait(job_id, on_progress=see, timeout_s=arguments.timeout)
    out = getattr(arguments, "out", None)
    if out is None:
        _display(job, screen)
    else:
        _fetch(client, job_id, out, screen)


def _events(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    for event in client.events(arguments.id, after=arguments.after):
        at = "" if event.at is None else f"{event.at:%H:%M:%S} "
        told = " ".join(f"{name}={value}" for name, value in event.data.items() if value not in {None, ""})
        screen.line(event, f"{at}{event.type} {told}".rstrip())


def _logs(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    for line in client.logs(arguments.id, stage=arguments.stage):
        screen.line(line, f"{line.at:%H:%M:%S} {line.stage}.{line.attempt} {line.level}: {line.message}")


def _attempts(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    screen.records(
        client.attempts(arguments.id),
        {
            "stage": lambda one: one.stage,
            "attempt": lambda one: one.attempt,
            "worker": lambda one: one.worker,
            "began": lambda one: one.started_at,
            "ended": lambda one: one.finished_at,
            "outcome": lambda one: one.outcome,
            "from step": lambda one: one.resumed_step,
            "error": lambda one: one.error and one.error["code"],
        },
    )


def _decide(name: str) -> Any:  # noqa: ANN401 - an act of `Group.verb`
    def act(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
        job = {"cancel": client.cancel, "stop": client.stop, "retry": client.retry}[name](arguments.id)
        screen.line(job, job.id if name == "retry" else f"{job.id} {job.state}")

    return act


def _delete(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    receipt = client.delete(arguments.id)
    gone = names(f"{tally.count} {name} ({size(tally.bytes)})" for name, tally in receipt.erased.items() if tally.count)
    screen.document(receipt.model_dump(mode="json"), f"{receipt.id} {receipt.state}: {gone or 'nothing was left'}")


def _download(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _fetch(client, arguments.id, arguments.out or Path(arguments.id), screen)


def _fetch(client: Client, job_id: str, folder: Path, screen: Screen) -> None:
    with screen.counting("fetching") as see:
        files = client.download(job_id, folder, on_download=see)
    screen.document({name: str(path) for name, path in files.items()}, "\n".join(map(str, files.values())))


def _recipes(client: Client, _: argparse.Namespace, screen: Screen) -> None:
    found = client.recipes()
    lines = [f"{each['name']}: {each['description']}" for each in found.recipes]
    lines += [f"merge recipes: {names(found.merge_recipes)}", f"base models: {names(found.base_models)}"]
    screen.document(found.model_dump(mode="json"), "\n".join(lines))
