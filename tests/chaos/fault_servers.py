"""Faults of what the services stand on: database, broker, object store, network."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import psycopg
import redis

from tests.chaos.arena import Struck
from tests.chaos.fault_processes import _attempt_folder
from tests.chaos.installation import LEASE_S
from tests.chaos.proxies import Mode

if TYPE_CHECKING:
    from tests.chaos.arena import Arena, Prey
    from tests.chaos.proxies import Proxy

WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND application_name LIKE 'worker%%' AND state = 'active'
"""
LINGER_S = 0.4
"""From the last output's arrival in the store to the terminal write's arrival at the lock."""


def restart_postgres(arena: Arena, how: signal.Signals) -> Struck | None:
    """A restart while progress is being written."""
    stepping = [prey for prey in arena.prey() if 0 < prey.stage.step < prey.stage.total]
    if not stepping or not arena.all_can_bear():
        return None
    at = arena.before_blow()
    arena.installation.restart_postgres(how)
    return Struck([prey.stage.id for prey in stepping], _where(stepping[0]), at=at)


def restart_postgres_at_terminal_write(arena: Arena) -> Struck | None:
    """A restart while the write that ends a stage is in flight: it waits for a row that the harness holds."""
    if not arena.all_can_bear():
        return None
    for prey in arena.prey():
        if prey.stage.total and prey.stage.step >= prey.stage.total - 2:
            return _hold_and_restart(arena, prey)
    return None


def _hold_and_restart(arena: Arena, prey: Prey) -> Struck | None:
    folder = _attempt_folder(arena, prey)
    with arena.look.connect() as holder:
        holder.autocommit = False
        holder.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", (prey.stage.job_id,))

        def is_ending() -> bool:
            stored = any(path.is_file() for path in folder.glob("*.*"))
            return stored and arena.look.value(WAITING) > 0

        if not arena.wait(is_ending, LEASE_S):
            holder.rollback()
            return None
        arena.sleep(LINGER_S)
        at = arena.before_blow()
        arena.installation.restart_postgres(arena.rng.choice([signal.SIGINT, signal.SIGQUIT]))
        try:
            holder.rollback()
        except psycopg.OperationalError:
            holder.close()
    return Struck([prey.stage.id], _where(prey), at=at)


def restart_valkey(arena: Arena) -> Struck | None:
    """The broker dies, and comes back empty."""
    if not arena.unfinished:
        return None
    arena.installation.restart_valkey()
    return Struck()


def flush_valkey(arena: Arena) -> Struck | None:
    """FLUSHALL."""
    if not arena.unfinished:
        return None
    with redis.Redis.from_url(arena.installation.valkey.url) as client:
        client.flushall()
    return Struck()


def store_in(arena: Arena, mode: Mode) -> Struck | None:
    """The object store is down, slow or full for a while, for everybody or for one worker."""
    stepping = [prey for prey in arena.prey(deadly=False) if prey.stage.step >= 1]
    if not stepping:
        return None
    prey = stepping[0]
    everybody = arena.rng.random() < 0.5
    proxies = arena.installation.proxies.named("store " if everybody else f"store {prey.slot.name}")
    seconds = arena.rng.uniform(2, 5)
    _for_a_while(arena, proxies, mode, seconds, delay_s=0.25)
    who = "everybody" if everybody else prey.slot.name
    return Struck([prey.stage.id], f"for {who}, {seconds:.1f} s, {_where(prey)}")


def cut_off_database(arena: Arena, mode: Mode) -> Struck | None:
    """The way between one worker and the database is cut or silent, past the lease: its late writes must be fenced."""
    for prey in arena.prey():
        stages = arena.strike(prey)
        seconds = LEASE_S + arena.rng.uniform(1, 4)
        _for_a_while(arena, arena.installation.proxies.named(f"postgres {prey.slot.name}"), mode, seconds)
        return Struck(stages, f"{seconds:.1f} s, {_where(prey)}")
    return None


def _for_a_while(arena: Arena, proxies: list[Proxy], mode: Mode, seconds: float, *, delay_s: float = 0.0) -> None:
    for proxy in proxies:
        proxy.set(mode, delay_s=delay_s)

    def end() -> None:
        for proxy in proxies:
            proxy.set(Mode.OPEN)

    arena.later(seconds, end)


def _where(prey: Prey) -> str:
    return f"{prey.slot.name}, {prey.stage.name}, step {prey.stage.step} of {prey.stage.total}"
