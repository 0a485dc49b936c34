"""Which runnable stages come next, in the one fair order: of all that wait, or of those that are like one.

Index scans only, however long the queue is: one step of an index for each account that waits, then its best few.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from api.jobs.sharing import step_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Row, TextClause
    from sqlalchemy.orm import Session

    from api.jobs.models import Stage

LIKE_LOOK = 64
"""So many stages of an account that are like one are looked at, the best first."""

_IN_ORDER = """
    WITH RECURSIVE waiting AS (
      (SELECT account_id FROM stages WHERE state = 'runnable' ORDER BY account_id LIMIT 1)
      UNION ALL
      SELECT (SELECT s.account_id FROM stages s WHERE s.state = 'runnable' AND s.account_id > w.account_id
              ORDER BY s.account_id LIMIT 1)
      FROM waiting w WHERE w.account_id IS NOT NULL),
    served AS MATERIALIZED (
      SELECT account_id, max(finished_at) AS at
      FROM (SELECT account_id, finished_at FROM jobs WHERE finished_at IS NOT NULL
            ORDER BY finished_at DESC LIMIT 200) latest
      GROUP BY account_id),
    loads AS MATERIALIZED (
      SELECT a.id AS account_id, served.at AS served_at, a.max_running_jobs IS NOT NULL AS is_limited,
             (SELECT count(*) FROM stages b WHERE b.account_id = a.id AND b.state = 'running') AS running,
             CASE WHEN a.max_running_jobs IS NULL THEN false
                  ELSE (SELECT count(*) FROM jobs j WHERE j.account_id = a.id AND j.state = 'running'
                        AND j.finished_at IS NULL) >= a.max_running_jobs END AS is_full
      FROM waiting w JOIN accounts a ON a.id = w.account_id LEFT JOIN served ON served.account_id = a.id),
    firsts AS (
      SELECT w.*, first.priority
      FROM loads w CROSS JOIN LATERAL ({first}) first
      ORDER BY first.priority DESC, w.running, w.served_at NULLS FIRST, first.queued_at, first.job_id LIMIT :wanted),
    depths AS MATERIALIZED (
      SELECT w.*, CASE WHEN count(*) OVER () < :wanted OR w.priority > min(w.priority) OVER () THEN :wanted
                       ELSE 1 + max(w.running) OVER (PARTITION BY w.priority) - w.running END AS depth
      FROM firsts w)
    SELECT best.id, w.is_limited, now() AS now
    FROM depths w
    CROSS JOIN LATERAL (
      SELECT s.*, row_number() OVER (ORDER BY s.priority DESC, s.queued_at, s.job_id, s.ordinal) AS nth
      FROM ({best}) s) best
    ORDER BY best.priority DESC, w.running + best.nth, w.served_at NULLS FIRST,
             best.queued_at, best.job_id, best.ordinal
    LIMIT :wanted
    """
"""Of the stages that `{first}` and `{best}` give for each account.

An account's second candidate counts as if the first were running: whoever loses the race for the first turns to another
account. Whatever is among the best is of an account whose first candidate is (`firsts`), and of one with as many
running as the last of these nothing but the first can be (`depths`): what the others have need not be read.
"""

_ELIGIBLE = """
      SELECT s.id, s.priority, s.queued_at, s.job_id, s.ordinal
      FROM {stages}
        AND s.runnable_at <= now()
        AND (SELECT j.kind = ANY(:kinds) AND (NOT :mocks_only OR j.mock_outcome IS NOT NULL)
                    AND j.cancel_requested_at IS NULL
                    AND (j.deadline_at IS NULL OR j.deadline_at > now())
                    AND NOT (w.is_full AND j.started_at IS NULL)
             FROM jobs j WHERE j.id = s.job_id)
      ORDER BY s.priority DESC, s.queued_at, s.job_id, s.ordinal LIMIT {most}"""
"""The conditions on the job are a scalar subquery on purpose: of a join the planner would make a sequential scan."""

_QUEUED = "stages s WHERE s.account_id = w.account_id AND s.state = 'runnable' AND NOT w.is_full"
_BEGUN = """
      (SELECT l.* FROM jobs o JOIN stages l ON l.job_id = o.id
       WHERE o.account_id = w.account_id AND o.state = 'running' AND o.finished_at IS NULL AND l.state = 'runnable') s
      WHERE w.is_full"""
_ALL = (
    "SELECT s.* FROM (({queued}) UNION ALL ({begun})) s"
    " ORDER BY s.priority DESC, s.queued_at, s.job_id, s.ordinal LIMIT {most}"
)
"""Of an account that runs as many jobs as it may, what waits of these jobs: the rest of its queue is not looked at."""
_LIKE = _ELIGIBLE.replace(
    "{stages}",
    """
      (SELECT l.* FROM stages l WHERE l.account_id = w.account_id AND l.state = 'runnable' AND l.likeness = :likeness
       ORDER BY l.priority DESC, l.queued_at, l.job_id, l.ordinal LIMIT :look) s
      WHERE NOT s.alone AND s.memory_profile = 'full' AND s.job_id <> :job_id
        AND coalesce(s.checkpoint ->> 'step', '') = :step""",
)


def _in_order(eligible: str) -> TextClause:
    first, best = (eligible.replace("{most}", most) for most in ("1", "w.depth"))
    return text(_IN_ORDER.replace("{first}", first).replace("{best}", best))


ANY = _in_order(
    _ALL.replace("{queued}", _ELIGIBLE.replace("{stages}", _QUEUED)).replace(
        "{begun}", _ELIGIBLE.replace("{stages}", _BEGUN)
    )
)
LIKE = _in_order(_LIKE)


def find_any(session: Session, *, kinds: Collection[str], wanted: int, mocks_only: bool = False) -> Sequence[Row[Any]]:
    """Return the best runnable stages, if asked only those of mock jobs: `id`, `is_limited` (its account is), `now`."""
    asked = {"kinds": [str(kind) for kind in kinds], "wanted": wanted, "mocks_only": mocks_only}
    return session.execute(ANY, asked).all()


def find_like(session: Session, stage: Stage, *, kinds: Collection[str], wanted: int) -> Sequence[Row[Any]]:
    """Return the best runnable stages of other jobs that may share the passes of a stage, as far as rows alone tell."""
    step = step_of(stage)
    like = {
        "likeness": stage.likeness,
        "job_id": stage.job_id,
        "step": "" if step is None else str(step),
        "look": LIKE_LOOK,
        "mocks_only": False,
    }
    return session.execute(LIKE, {"kinds": [str(kind) for kind in kinds], "wanted": wanted} | like).all()
