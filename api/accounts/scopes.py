"""What a key may do. A scope to write something includes the one to read it, and `admin` includes all."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Scope(StrEnum):
    """A permission of a key; every operation needs one."""

    JOBS_READ = "jobs:read"
    """Jobs, their events, logs and results, and the recipes."""
    JOBS_WRITE = "jobs:write"
    """Submit, cancel, stop, retry and delete jobs."""
    LORAS_READ = "loras:read"
    LORAS_WRITE = "loras:write"
    UPLOADS_READ = "uploads:read"
    UPLOADS_WRITE = "uploads:write"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    ADMIN = "admin"
    """Everything, the account's keys included."""


USUAL = (Scope.JOBS_WRITE, Scope.LORAS_WRITE, Scope.UPLOADS_WRITE, Scope.WEBHOOKS_WRITE)
"""Of a new key for which none are named: everything but keys."""

_WRITE = ":write"
_READ = ":read"


def missing(held: Collection[str], wanted: Iterable[str]) -> list[str]:
    """Return those of the wanted scopes that a key with the held ones lacks; wanting none is wanting `admin`."""
    if Scope.ADMIN in held:
        return []
    needed = list(wanted) or [Scope.ADMIN.value]
    return [scope for scope in needed if scope not in held and scope.replace(_READ, _WRITE) not in held]


def tidy(scopes: Iterable[Scope]) -> list[str]:
    """Return scopes in their order, each once, without those that another one includes."""
    wanted = set(scopes)
    if Scope.ADMIN in wanted:
        return [Scope.ADMIN.value]
    return [scope.value for scope in Scope if scope in wanted and not _is_included(scope, wanted)]


def _is_included(scope: Scope, others: Collection[str]) -> bool:
    return scope.endswith(_READ) and scope.replace(_READ, _WRITE) in others
