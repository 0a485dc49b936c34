"""`duolora webhooks`: have servers told of jobs, and see how that goes."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from api.commands.connection import Group

if TYPE_CHECKING:
    import argparse

    from api.client import Client, Delivery, Webhook
    from api.commands.screen import Screen

_WEBHOOK = {
    "id": lambda hook: hook.id,
    "url": lambda hook: hook.url,
    "state": lambda hook: hook.state,
    "reason": lambda hook: hook.disabled_reason,
    "events": lambda hook: hook.events or "the lifecycle",
    "description": lambda hook: hook.description,
}
_DELIVERY = {
    "id": lambda each: each.id,
    "type": lambda each: each.type,
    "state": lambda each: each.state,
    "attempts": lambda each: each.attempts,
    "status": lambda each: each.last_status,
    "error": lambda each: each.last_error,
    "created": lambda each: each.created_at,
    "next": lambda each: each.next_attempt_at,
}
_LOG = {
    "job": lambda each: each.job_id,
    "to": lambda each: each.url,
    "body": lambda each: each.body,
    "log": lambda each: "\n".join(
        f"{one.attempt}: {one.started_at:%Y-%m-%d %H:%M:%S} {one.error or one.status} in {one.duration_ms} ms"
        for one in each.log
    ),
}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `webhooks` to the `duolora` command."""
    group = Group(commands, "webhooks", "have servers told of jobs, and see how that goes")
    group.verb("list", "list webhooks", _list).add_argument("--job", metavar="ID", help="that of one job")
    group.verb("show", "show one webhook", _show, "id")
    _wishes(group.verb("create", "have a server told; prints its secret, this once", _create, "target"))
    change = group.verb("change", "change a webhook", _change, "id")
    change.add_argument("--to", metavar="URL", help="another URL")
    change.add_argument("--state", choices=["enabled", "disabled"])
    _wishes(change)
    group.verb("delete", "delete a webhook with its log", _delete, "id")
    group.verb("enable", "have a webhook told again", _enable, "id")
    rotate = group.verb("rotate", "change a webhook's secret; prints the new one, this once", _rotate, "id")
    rotate.add_argument("--secret", help="one of your own, whsec_...")
    group.verb("ping", "ask a webhook to answer", _ping, "id")
    deliveries = group.verb("deliveries", "list what was sent to a webhook, newest first", _deliveries, "id")
    deliveries.add_argument("--state", help="only those in this state")
    deliveries.add_argument("--limit", type=int, default=20, help="most of them (default %(default)s)")
    group.verb("delivery", "show what was sent and how each attempt went", _delivery, "id")
    group.verb("replay", "send a delivery once more", _replay, "id")


def _wishes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--event", action="append", help="what it is told of; may be repeated")
    parser.add_argument("--description", help="what it is for")


def _list(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    screen.records(client.webhooks(job_id=arguments.job), _WEBHOOK)


def _show(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    screen.record(client.webhook(arguments.id), _WEBHOOK)


def _create(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    events, description = arguments.event or (), arguments.description or ""
    _with_secret(client.create_webhook(arguments.target, events=events, description=description), screen)


def _with_secret(hook: Webhook, screen: Screen) -> None:
    screen.record(hook, _WEBHOOK | {"secret": lambda hook: hook.secret})


def _change(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    wishes: dict[str, Any] = {"events": arguments.event, "description": arguments.description}
    changed = client.change_webhook(arguments.id, url=arguments.to, state=arguments.state, **wishes)
    screen.record(changed, _WEBHOOK)


def _delete(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    client.delete_webhook(arguments.id)
    screen.document({"id": arguments.id, "deleted": True}, f"{arguments.id} deleted")


def _enable(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    screen.record(client.enable_webhook(arguments.id), _WEBHOOK)


def _rotate(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _with_secret(client.rotate_webhook_secret(arguments.id, secret=arguments.secret), screen)


def _ping(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _one(client.ping_webhook(arguments.id), screen)


def _one(delivery: Delivery, screen: Screen) -> None:
    screen.record(delivery, _DELIVERY | _LOG)


def _deliveries(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    found = client.deliveries(arguments.id, state=arguments.state, page_size=min(max(arguments.limit, 1), 100))
    screen.records(list(islice(found, arguments.limit)), _DELIVERY)


def _delivery(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _one(client.delivery(arguments.id), screen)


def _replay(client: Client, arguments: argparse.Namespace, screen: Screen) -> None:
    _one(client.replay_delivery(arguments.id), screen)
