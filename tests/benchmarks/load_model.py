"""The service as a queue: jobs come, their stages wait for a claim and for a GPU. A discrete-event simulation.

Jobs come at random and independently (Poisson). Every stage needs one claim, which Postgres makes one after another,
and then one GPU for its time; the stages of the job that came first go first. That is the order of the service for
jobs of one priority, but for its turns between accounts, which change whose job waits and not how long jobs wait on
average.
"""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

import simpy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

WARM_UP = 0.2
"""Share of the jobs, the first ones, that are not counted: they came to an empty house."""


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage of every job: how long it lasts, in seconds, and the names of those that come before it."""

    seconds: Callable[[random.Random], float]
    after: tuple[str, ...] = ()

    @classmethod
    def of(cls, seconds: float, *after: str) -> StageTime:
        """One that always lasts as long."""
        return cls(lambda _: seconds, after)

    @property
    def fixed_s(self) -> float:
        """How long one lasts that always lasts as long."""
        return self.seconds(random.Random(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What came of a run, in seconds, a value for each job that was counted."""

    start: Sequence[float]
    """From its arrival until its first stage ran."""
    whole: Sequence[float]
    """From its arrival until its last stage had ended."""

    def row(self, of: Sequence[float]) -> tuple[float, float, float]:
        """Mean, median and 95th percentile."""
        ordered = sorted(of)
        return fmean(ordered), ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]


@dataclass(slots=True)
class _Job:
    arrived: float
    left: dict[str, StageTime]
    done: set[str] = field(default_factory=set)
    started: float | None = None
    ended: float | None = None


class Fleet:
    """GPUs and the database that tells them what to do."""

    def __init__(
        self, plan: Mapping[str, StageTime], *, gpus: int, claims_a_second: float | None = None, seed: int = 0
    ) -> None:
        self._plan = plan
        self._idle = gpus
        self._claim_s = 0.0 if claims_a_second is None else 1 / claims_a_second
        self._random = random.Random(seed)
        self._env = simpy.Environment()
        self._postgres = simpy.Resource(self._env)
        self._runnable: list[tuple[float, int, _Job, str]] = []
        self._nth = itertools.count()

    def run(self, *, jobs_a_second: float, jobs: int) -> Waits:
        """Let so many jobs come at such a rate, and see the last one through."""
        arrived: list[_Job] = []
        self._env.process(self._arrivals(arrived, jobs_a_second, jobs))
        self._env.run()
        counted = arrived[int(jobs * WARM_UP) :]
        return Waits(
            start=[job.started - job.arrived for job in counted if job.started is not None],
            whole=[job.ended - job.arrived for job in counted if job.ended is not None],
        )

    def _arrivals(self, arrived: list[_Job], jobs_a_second: float, jobs: int) -> Generator[simpy.Event, None, None]:
        for _ in range(jobs):
            yield self._env.timeout(self._random.expovariate(jobs_a_second))
            job = _Job(self._env.now, dict(self._plan))
            arrived.append(job)
            self._wake(job)
            self._claim()

    def _wake(self, job: _Job) -> None:
        """Queue the stages of a job whose turn has come."""
        for name in [name for name, stage in job.left.items() if job.done.issuperset(stage.after)]:
            heapq.heappush(self._runnable, (job.arrived, next(self._nth), job, name))
            del job.left[name]

    def _claim(self) -> None:
        """Give idle GPUs what waits."""
        while self._idle and self._runnable:
            *_, job, name = heapq.heappop(self._runnable)
            self._idle -= 1
            self._env.process(self._work(job, name))

    def _work(self, job: _Job, name: str) -> Generator[simpy.Event, None, None]:
        if self._claim_s:
            with self._postgres.request() as turn:
                yield turn
                yield self._env.timeout(self._claim_s)
        if job.started is None:
            job.started = self._env.now
        yield self._env.timeout(self._plan[name].seconds(self._random))
        job.done.add(name)
        if len(job.done) == len(self._plan):
            job.ended = self._env.now
        self._wake(job)
        self._idle += 1
        self._claim()
