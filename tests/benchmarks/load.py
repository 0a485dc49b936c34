"""How long jobs wait, by how many come and how many GPUs there are: `python -m tests.benchmarks.load`.

Writes load.md and load.svg beside it: what `load_model.py` makes of measured stage times and of the measured claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.line_chart import Line, line_chart
from tests.benchmarks.load_model import Fleet, StageTime, Waits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HERE = Path(__file__).parent
JOBS = 20_000
FLEETS = (1, 10, 100, 1000)
LOADS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
PLAN_LOAD = 0.8
"""Of the fleet whose database is the question."""


@dataclass(frozen=True, slots=True)
class Source:
    """A measured figure and where it comes from."""

    what: str
    value: float
    unit: str
    where: str


STEP = Source("one image of a training step, SDXL, 1024 px, rank 64", 0.0381, "s", "gpu.json, H100, 8 images a pass")
STEPS = Source("training steps of each LoRA, one image each", 500, "", "the goal's job: 500 + 500 steps")
JOB_TRAINING = Source("both trainings of a measured job, in one pass of 2 images", 51.1, "s", "gpu.json, H100")
MERGE = Source("merge, recipe `duolora`", 2.1, "s", "gpu.json, H100, the same job")
PREVIEWS = Source("four previews", 4.6, "s", "gpu.json, H100, the same job: 57.8 s in all")
DEMO = Source(
    "the demo's whole job on two CPU cores", 49.0, "s", "a measured run of `make demo` on a fresh clone, two cores"
)
CLAIMS_BEFORE = Source(
    "claims, 64 at once among 10,000 stages, as they were", 8.8, "a second", "claims.py, two cores shared with all"
)
CLAIMS = Source("the same as they are", 38.0, "a second", "claims.py, two cores shared with all")
CLAIM_CPU = Source(
    "processor time of Postgres for one of these claims", 0.0118, "s", "claims.py: 85 a second on a core of its own"
)
SOURCES = (STEP, STEPS, JOB_TRAINING, MERGE, PREVIEWS, DEMO, CLAIMS_BEFORE, CLAIMS, CLAIM_CPU)


def plan(training_s: float) -> dict[str, StageTime]:
    """The stages of a job on an H100, by the seconds that one of its two trainings takes."""
    return {
        "content_lora": StageTime.of(training_s),
        "style_lora": StageTime.of(training_s),
        "merge": StageTime.of(MERGE.value, "content_lora", "style_lora"),
        "package": StageTime.of(PREVIEWS.value, "merge"),
    }


PLAN = plan(STEP.value * STEPS.value)
"""With full passes."""
SMALL_PASSES = plan(JOB_TRAINING.value / 2)
"""At the pace of the measured job, which had its GPU to itself."""
DEMO_PLAN = {"job": StageTime.of(DEMO.value)}


def main() -> None:
    """Simulate all and write the page and its picture."""
    by_fleet = {gpus: [(load, _simulate(PLAN, gpus, load)) for load in LOADS] for gpus in FLEETS}
    lines = [
        Line(f"{gpus:,} GPU{'s' * (gpus > 1)}", [(load * 100, waits.row(waits.start)[2]) for load, waits in points])
        for gpus, points in by_fleet.items()
    ]
    (HERE / "load.svg").write_text(
        line_chart(
            lines, across="load in percent of what the GPUs can do", up="seconds until the start, 95th percentile"
        )
    )
    sections = [
        _INTRODUCTION,
        _table(("figure", "value", "from"), ((s.what, f"{s.value:g} {s.unit}".strip(), s.where) for s in SOURCES)),
        _waiting(),
        _table(_WAITING, (row for gpus, points in by_fleet.items() for row in _rows(gpus, PLAN, points))),
        "\nAt the pace of the measured job, and one worker of two CPU cores with the demo's job:\n",
        _table(_WAITING, _others()),
        _claims(),
        _WHAT_THEN,
    ]
    (HERE / "load.md").write_text("\n".join(sections))


def _waiting() -> str:
    """The beginning of the page's part about GPUs."""
    work = _work(PLAN)
    return (
        f"\n## Waiting\n\nA job takes {work:.1f} s of GPUs and at least {work - STEP.value * STEPS.value:.1f} s"
        " of time. Seconds: mean / median / 95th percentile.\n\n![Seconds until the start against the load](load.svg)\n"
    )


def _simulate(stages: Mapping[str, StageTime], gpus: int, load: float, claims: float | None = None) -> Waits:
    return Fleet(stages, gpus=gpus, claims_a_second=claims).run(jobs_a_second=gpus * load / _work(stages), jobs=JOBS)


def _work(stages: Mapping[str, StageTime]) -> float:
    """Seconds of GPUs that a job takes; all stages here last a fixed time."""
    return sum(stage.fixed_s for stage in stages.values())


_WAITING = ("GPUs", "load", "jobs an hour", "until the start", "until the end")


def _rows(
    gpus: int | str, stages: Mapping[str, StageTime], points: Iterable[tuple[float, Waits]], count: int | None = None
) -> Iterable[tuple[str, ...]]:
    for load, waits in points:
        hourly = 3600 * load * (count or int(gpus)) / _work(stages)
        start, whole = (" / ".join(f"{value:.1f}" for value in waits.row(of)) for of in (waits.start, waits.whole))
        yield str(gpus), f"{load:.0%}", f"{hourly:,.0f}", start, whole


def _others() -> Iterable[tuple[str, ...]]:
    for gpus in (1, 10):
        points = [(load, _simulate(SMALL_PASSES, gpus, load)) for load in (0.5, 0.8, 0.95)]
        yield from _rows(gpus, SMALL_PASSES, points)
    points = [(load, _simulate(DEMO_PLAN, 1, load)) for load in (0.5, 0.8)]
    yield from _rows("CPU", DEMO_PLAN, points, count=1)


def _claims() -> str:
    """The page's part about the database."""
    stages, a_job = PLAN, len(PLAN)
    rows = []
    for claims in (CLAIMS_BEFORE.value, CLAIMS.value, 1 / CLAIM_CPU.value, 2 / CLAIM_CPU.value, 4 / CLAIM_CPU.value):
        gpus = claims * _work(stages) / a_job
        enough = claims > PLAN_LOAD * FLEETS[-1] * a_job / _work(stages)
        told = "ever longer"
        if enough:
            waits = _simulate(stages, FLEETS[-1], PLAN_LOAD, claims)
            told = " / ".join(f"{value:.2f}" for value in waits.row(waits.start))
        rows.append((f"{claims:.0f}", f"{gpus:,.0f}", f"{3600 * claims / a_job:,.0f}", told))
    heads = (
        "claims a second",
        "GPUs kept busy",
        "jobs an hour at most",
        f"{FLEETS[-1]:,} GPUs at {PLAN_LOAD:.0%}: start",
    )
    return (
        f"\n## Claims\n\nA job needs {a_job} claims, so a GPU makes one in {_work(stages) / a_job:.1f} s; "
        f"{FLEETS[-1]:,} busy ones make {FLEETS[-1] * a_job / _work(stages):.0f} a second."
        " What a rate is enough for:\n\n" + _table(heads, rows)
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


_INTRODUCTION = """# How long jobs wait

Made by `python -m tests.benchmarks.load`: a simulation (`load_model.py`, checked against Erlang C, M/D/1 and the
longest way in `test_load_model.py`) with measured times. Jobs come at random, all of one kind; 20,000 of them for each
line, the first fifth not counted. No failures, no quotas, every GPU warm, a GPU to each training. An image takes as
long as in a pass of 8, which full passes of several jobs reach; the pace of a job by itself stands apart.
"""

_WHAT_THEN = """
## What then

The first two rates are of a machine that Postgres shared with the claimers and with others' work, which Python bounds;
the last three are Postgres on one, two and four cores of its own, by its processor time for a claim beside 63 others.
A finish, signs of life and progress are not counted: leave them as much again.

The limit is processor time, not locks. The first remedy is cores for Postgres. The second is fewer accounts to look at:
a claim reads some rows of every account that waits, whatever the length of the queue. Finding the candidates takes 0.8
ms of processor time while ten accounts wait, 1.5 with a hundred and 10 with a thousand, of 4 to 6 ms for a claim by
itself with a hundred. Claims by parts (a worker looks at the accounts of one hash first, and at all of them when that
part is empty) would divide this share by the number of parts. With a hundred accounts that is less than a third of a
claim; with a thousand it is two thirds, and ten parts would make a claim three times as cheap. So it would pay where
a thousand accounts wait at once and hundreds of GPUs ask. It is not built: it would give up fairness between the parts.

The next limit is the commit. A claim tells its listeners (NOTIFY), and of such transactions Postgres commits one at a
time, each with a sync of its own: on the measuring machine 290 to 460 a second on 32 connections, against 2,400 to
4,700 without NOTIFY, which share their syncs (`python -m tests.benchmarks.commits`). Submissions, claims, finishes and
progress that is told take one each: if half of them are claims, such a disk serves about 150 claims a second, enough
for 1,700 GPUs; two cores are for 1,900.
Beyond that the notification belongs behind the commit, in a transaction of its own that does not wait for the disk: it
is a hint, and who misses it looks again after a while.
"""


if __name__ == "__main__":
    main()
