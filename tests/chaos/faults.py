"""The table of faults: every row of the durability matrix that one machine can do, and how often it comes in 200."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tests.chaos import fault_processes as processes
from tests.chaos import fault_requests as requests
from tests.chaos import fault_servers as servers
from tests.chaos.proxies import Mode
from tests.chaos.receiver import Manner

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable

    from tests.chaos.arena import Arena, Struck

STAGES = ("content_lora", "style_lora", "merge", "package")
IN_ALL = 200


@dataclass(frozen=True)
class Fault:
    """One kind of accident."""

    name: str
    times: int
    """In a run of 200."""
    act: Callable[[Arena], Struck | None]
    """Do it now and say what it hit; None where it cannot be done now, and then nothing has happened that counts."""


def _in_each_stage(name: str, times: int, act: Callable[[Arena, str], Struck | None]) -> list[Fault]:
    return [Fault(f"{name} in {stage}", times, processes.in_stage(act, stage)) for stage in STAGES]


TABLE: tuple[Fault, ...] = (
    *_in_each_stage("kill -9 engine", 6, processes.kill_engine),
    *_in_each_stage("kill -9 worker", 4, processes.kill_worker),
    *_in_each_stage("kill -9 dispatcher", 2, processes.kill_dispatcher),
    *_in_each_stage("kill -9 api", 2, processes.kill_api),
    *_in_each_stage("cancel", 2, requests.cancel),
    *(
        Fault(f"{name} in generate", times, processes.in_stage(act, "generate"))
        for name, times, act in (
            ("kill -9 engine", 4, processes.kill_engine),
            ("kill -9 worker", 3, processes.kill_worker),
            ("cancel", 1, requests.cancel),
        )
    ),
    Fault("cancel after death", 4, requests.cancel_after_death),
    *(Fault(f"stop in {stage}", 2, partial(requests.stop_early, stage=stage)) for stage in STAGES[:3]),
    Fault("retry of a canceled job", 6, requests.retry),
    Fault("kill -9 between commit and publish", 6, processes.kill_before_publishing),
    Fault("kill -9 between publish and mark", 5, processes.kill_after_publishing),
    Fault("SIGTERM during a checkpoint", 10, processes.term_during_checkpoint),
    Fault("SIGTERM at any moment", 5, processes.term_worker),
    Fault("SIGSTOP past the lease", 10, processes.stop_worker_past_lease),
    Fault("engine hangs", 3, processes.hang_engine),
    Fault("power cut", 2, processes.kill_everything),
    Fault("two workers and one more race", 2, processes.race),
    Fault("valkey restart", 6, servers.restart_valkey),
    Fault("valkey FLUSHALL", 6, servers.flush_valkey),
    Fault("postgres restart during progress", 5, partial(servers.restart_postgres, how=signal.SIGINT)),
    Fault("postgres crash during progress", 4, partial(servers.restart_postgres, how=signal.SIGQUIT)),
    Fault("postgres restart at the terminal write", 8, servers.restart_postgres_at_terminal_write),
    Fault("store down", 6, partial(servers.store_in, mode=Mode.CUT)),
    Fault("store slow", 6, partial(servers.store_in, mode=Mode.SLOW)),
    Fault("store full", 6, partial(servers.store_in, mode=Mode.FULL)),
    Fault("network cut between worker and postgres", 6, partial(servers.cut_off_database, mode=Mode.CUT)),
    Fault("network silent between worker and postgres", 4, partial(servers.cut_off_database, mode=Mode.SILENT)),
    Fault("duplicate hints", 8, requests.duplicate_hints),
    Fault("receiver down for an hour", 5, partial(requests.receiver_in, manner=Manner.DOWN)),
    Fault("receiver slow", 4, partial(requests.receiver_in, manner=Manner.SLOW)),
    Fault("receiver redirects", 3, partial(requests.receiver_in, manner=Manner.ELSEWHERE)),
)


def deal(rng: random.Random, faults: int, done: Counter[str]) -> list[Fault]:
    """The faults that a run of so many still owes, in an order by chance.

    Args:
        rng: decides the order.
        faults: in the whole run.
        done: how often each has been done in it before, by name.
    """
    owed = [
        fault
        for fault in TABLE
        for _ in range(max(0, math.ceil(fault.times * faults / IN_ALL) - done.get(fault.name, 0)))
    ]
    rng.shuffle(owed)
    return owed
