"""How `duolora jobs submit --check` shows what a submission would become."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from api.commands.connection import REFUSED, USAGE, Unfit
from api.commands.screen import size

if TYPE_CHECKING:
    from api.client import JobCheck
    from api.commands.screen import Columns, Screen

_STAGES: Columns = {
    "stage": itemgetter("name"),
    "after": itemgetter("depends_on"),
    "steps": itemgetter("steps"),
    "seconds": itemgetter("predicted_seconds"),
}
_QUOTA: Columns = {
    "quota": itemgetter("policy"),
    "used": lambda one: _amount(one, one["used"]),
    "then": lambda one: _amount(one, one["after"]),
    "limit": lambda one: _amount(one, one["limit"]),
}
_REMARKS: Columns = {"picture": itemgetter("pointer"), "code": itemgetter("code"), "remark": itemgetter("detail")}


def show_check(found: JobCheck, screen: Screen) -> None:
    """Show stages with their predicted times, quotas, and what there is to say of the pictures.

    Raises:
        Unfit: the job would be refused; with the status that submitting would end with.
    """
    screen.tables(found, (_stages(found), _STAGES), (found.quota, _QUOTA), (_remarks(found), _REMARKS))
    if any(not image["ok"] for image in found.images):
        raise Unfit("the job would be refused: some pictures cannot be used", USAGE)
    if not found.ok:
        raise Unfit("the job would be refused: a quota is used up", REFUSED)


def _stages(found: JobCheck) -> list[dict[str, Any]]:
    """Return the stages, and a row for all of them, whose time is not known while that of one is not."""
    whole: dict[str, Any] = {
        "name": "all",
        "depends_on": [],
        "steps": None,
        "predicted_seconds": found.predicted_seconds,
    }
    return [*found.stages, whole]


def _remarks(found: JobCheck) -> list[dict[str, Any]]:
    """Return what is wrong with pictures, then what to think over: of single ones, then of all together."""
    problems = [image["problem"] for image in found.images if image["problem"]]
    return [*problems, *(hint for image in found.images for hint in image["hints"]), *found.hints]


def _amount(quota: dict[str, Any], count: int | None) -> object:
    return size(count) if count is not None and quota["policy"].endswith("-bytes") else count
