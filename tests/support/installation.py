"""A running installation as its callers see it: what the end-to-end tests need to know of the one they are run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "DUOLORA_E2E_"


@dataclass(frozen=True)
class Installation:
    """Where it is and how to speak to it; None for what the tests were not told and so cannot use."""

    url: str
    api_key: str
    webhook_host: str | None = None
    """Name or address by which it reaches this machine; it must allow webhooks to go there."""
    webhook_secret: str | None = None
    """Of the key's account."""
    other_api_key: str | None = None
    """Of an account that has no jobs."""


def told_installation(environment: Mapping[str, str]) -> Installation | None:
    """The installation that the environment names, as `make e2e` does; None where the tests make one themselves.

    Raises:
        KeyError: there is a URL without a key.
    """
    told = {
        name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX) and value
    }
    if "URL" not in told:
        return None
    return Installation(
        url=told["URL"].rstrip("/"),
        api_key=told["API_KEY"],
        webhook_host=told.get("WEBHOOK_HOST"),
        webhook_secret=told.get("WEBHOOK_SECRET"),
        other_api_key=told.get("OTHER_API_KEY"),
    )


def telling(installation: Installation) -> dict[str, str]:
    """The environment that names an installation."""
    told = {
        "URL": installation.url,
        "API_KEY": installation.api_key,
        "WEBHOOK_HOST": installation.webhook_host,
        "WEBHOOK_SECRET": installation.webhook_secret,
        "OTHER_API_KEY": installation.other_api_key,
    }
    return {PREFIX + name: value for name, value in told.items() if value is not None}
