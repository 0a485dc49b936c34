"""A submission is looked at, and nothing of it is stored: what it would become, and which pictures to think over."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.accounts import quotas
from api.db import transaction
from api.errors import FieldError
from api.jobs.check_schemas import CheckedImage, CheckedQuota, CheckedStage, Hint, JobCheck
from api.jobs.memory_prediction import predict_peaks
from api.jobs.models import Side
from api.jobs.prediction import predict, steps_of
from api.jobs.resemblance import dhash, resemble
from api.schemas import ProblemField

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.quotas import Usage
    from api.accounts.service import Caller
    from api.jobs.gathering import Gatherer
    from api.jobs.plan import StagePlan
    from api.jobs.sources import Picture
    from api.jobs.submission import Submission

FEW_CONTENT_IMAGES = 3
"""Fewer pictures of a subject teach its surroundings along with it: DreamBooth (Ruiz et al. 2023) takes 3 to 5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A picture that was looked at."""

    side: Side
    ordinal: int
    outcome: Picture | FieldError
    dhash: str | None
    hints: list[Hint] = field(default_factory=list)


class Checker:
    """Looks at submissions."""

    def __init__(self, sessions: sessionmaker[Session], gatherer: Gatherer) -> None:
        self._sessions = sessions
        self._gatherer = gatherer

    def check(
        self,
        caller: Caller,
        submission: Submission,
        config: Mapping[str, Any],
        stages: Sequence[StagePlan],
        copied_bytes: int = 0,
    ) -> JobCheck:
        """Tell what a submission would become.

        Args:
            caller: who sent it.
            submission: whose parameters were found good.
            config: the resolved configuration.
            stages: the plan.
            copied_bytes: what it would get besides its pictures.

        Raises:
            Unavailable: too many requests are having pictures read.
        """
        seen = self._look(caller, submission)
        _hint_at_sizes(seen, config)
        _hint_at_likeness(seen)
        stored = sum(one.outcome.bytes for one in seen if not isinstance(one.outcome, FieldError))
        with transaction(self._sessions) as session:
            used = quotas.usage(session, caller.account_id)
            names = [stage.name for stage in stages]
            seconds, peaks = predict(session, names, config), predict_peaks(session, names, config)
        quota = _quota(used, stored + copied_bytes)
        known = [value for value in seconds.values() if value is not None]
        return JobCheck(
            ok=all(not isinstance(one.outcome, FieldError) for one in seen)
            and all(each.limit is None or each.after <= each.limit for each in quota),
            config=dict(config),
            stages=[
                CheckedStage(
                    name=stage.name,
                    depends_on=list(stage.depends_on),
                    steps=steps_of(stage.name, config),
                    predicted_seconds=seconds[stage.name],
                    predicted_peak_bytes=peaks[stage.name],
                )
                for stage in stages
            ],
            predicted_seconds=round(sum(known), 1) if known and len(known) == len(seconds) else None,
            predicted_peak_bytes=_most(peaks.values()),
            quota=quota,
            images=[_image(one) for one in seen],
            hints=[*_hint_at_numbers(submission), *_hint_at_sides(seen)],
        )

    def _look(self, caller: Caller, submission: Submission) -> list[_Seen]:
        with tempfile.TemporaryDirectory(prefix="duolora-upload-") as folder:
            found = self._gatherer.look(caller, submission, Path(folder))
            return [
                _Seen(side=side, ordinal=ordinal, outcome=outcome, dhash=_hash(outcome))
                for side, ordinal, outcome in found
            ]


def _most(peaks: Collection[int | None]) -> int | None:
    """Return what the largest stage takes, None while one is unknown."""
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known and len(known) == len(peaks) else None


def _hash(outcome: Picture | FieldError) -> str | None:
    if isinstance(outcome, FieldError):
        return None
    return outcome.dhash or (dhash(outcome.place) if isinstance(outcome.place, Path) else None)


def _image(one: _Seen) -> CheckedImage:
    outcome = one.outcome
    if isinstance(outcome, FieldError):
        return CheckedImage(
            side=one.side,
            ordinal=one.ordinal,
            ok=False,
            width=None,
            height=None,
            sha256=None,
            problem=ProblemField(**outcome.to_json()),
            hints=[],
        )
    return CheckedImage(
        side=one.side,
        ordinal=one.ordinal,
        ok=True,
        width=outcome.width,
        height=outcome.height,
        sha256=outcome.sha256,
        hints=one.hints,
    )


def _hint_at_sizes(seen: Sequence[_Seen], config: Mapping[str, Any]) -> None:
    for one in seen:
        resolution_px = (config.get(one.side) or {}).get("resolution_px") or 0
        if isinstance(one.outcome, FieldError) or min(one.outcome.width, one.outcome.height) >= resolution_px:
            continue
        size = f"{one.outcome.width} x {one.outcome.height}"
        detail = f"is {size}, and is scaled up to {resolution_px} pixels, which blurs it; send a larger one"
        one.hints.append(Hint(code="small", detail=detail, pointer=one.outcome.pointer))


def _hint_at_likeness(seen: Sequence[_Seen]) -> None:
    """Say of each picture which earlier one of its side it repeats."""
    for place, one in enumerate(seen):
        for other in seen[:place]:
            if one.side is not other.side or isinstance(other.outcome, FieldError):
                continue
            if isinstance(one.outcome, FieldError) or not _alike(one, other):
                continue
            same = one.outcome.sha256 == other.outcome.sha256
            detail = f"{'is the same as' if same else 'looks like'} {other.outcome.pointer}, and teaches nothing new"
            code = "duplicate" if same else "near_duplicate"
            one.hints.append(Hint(code=code, detail=detail, pointer=one.outcome.pointer))
            break


def _hint_at_numbers(submission: Submission) -> list[Hint]:
    count = len(submission.content)
    if not 0 < count < FEW_CONTENT_IMAGES:
        return []
    detail = f"{count} of the subject: with {FEW_CONTENT_IMAGES} to 5 that differ in place and pose it is learnt better"
    return [Hint(code="too_few", detail=detail, pointer=f"/{submission.fields.format(side=Side.CONTENT)}")]


def _hint_at_sides(seen: Sequence[_Seen]) -> list[Hint]:
    """Say once that a picture is on both sides: what is to be told apart by a merge is then learnt as one."""
    for style in seen:
        for content in seen:
            if (style.side, content.side) != (Side.STYLE, Side.CONTENT) or not _alike(style, content):
                continue
            if not isinstance(style.outcome, FieldError) and not isinstance(content.outcome, FieldError):
                detail = f"looks like {content.outcome.pointer}: subject and style need pictures of their own"
                return [Hint(code="sides_alike", detail=detail, pointer=style.outcome.pointer)]
    return []


def _alike(one: _Seen, other: _Seen) -> bool:
    return one.dhash is not None and other.dhash is not None and resemble(one.dhash, other.dhash)


def _quota(used: Usage, stored_bytes: int) -> list[CheckedQuota]:
    after = used.with_more(stored_bytes)
    return [
        CheckedQuota(policy=quotas.QUEUED, used=used.queued_jobs, limit=used.max_queued_jobs, after=after.queued_jobs),
        CheckedQuota(
            policy=quotas.STORED, used=used.stored_bytes, limit=used.max_stored_bytes, after=after.stored_bytes
        ),
    ]
