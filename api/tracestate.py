"""The field `tracestate` of W3C Trace Context (section 3.3): what vendors say of a trace, beside `traceparent`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_MEMBERS = 32
MOST_CHARACTERS = 512
"""So many have to be handed on; what is longer is cut between members."""
LONG_MEMBER = 128
"""Those that are longer go first."""
_KEY = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(rf"({_KEY})=({_VALUE})")


def read_tracestate(fields: Sequence[str]) -> str | None:
    """Return what may be handed on of the fields of a request, in one; None if there is nothing.

    A list with a malformed member, a key twice or too many members is dropped as a whole, as the standard allows: who
    guessed at it would hand on what nobody sent.
    """
    members = [member for field in fields for part in field.split(",") if (member := part.strip(" \t"))]
    found = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in found if match}
    if len(keys) != len(members) or not 0 < len(members) <= MOST_MEMBERS:
        return None
    return _cut(members) or None


def _cut(members: list[str]) -> str:
    """Leave members out until the rest is short enough: long ones first, then from the end."""
    kept = list(members)
    for member in reversed(members):
        if len(",".join(kept)) > MOST_CHARACTERS and len(member) > LONG_MEMBER:
            kept.remove(member)
    while len(",".join(kept)) > MOST_CHARACTERS:
        kept.pop()
    return ",".join(kept)
