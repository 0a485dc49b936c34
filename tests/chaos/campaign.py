"""One round: a fresh installation, so many jobs, so many faults, a time to settle, a judgement."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from api.accounts.service import issue_key
from api.db import make_engine, session_factory
from tests.chaos.arena import Arena
from tests.chaos.callers import ALIKE, VARIANTS, Account, Callers
from tests.chaos.ingredients import stock
from tests.chaos.installation import Installation, stragglers
from tests.chaos.judge import judge, recovery_times
from tests.chaos.look import Look
from tests.chaos.receiver import Receiver
from tests.chaos.report import is_clean
from tests.support.vault import VAULT

if TYPE_CHECKING:
    import uuid
    from pathlib import Path

    from tests.chaos.arena import Struck
    from tests.chaos.faults import Fault

IN_FLIGHT = 5
"""Jobs that are under way at once, as far as the round has so many."""
GAP_S = (0.3, 1.7)
"""Shortest and longest pause between two faults."""
STILL_S = 180.0
"""Without a sign of any stage for so long, what has not ended is lost: no pause before a retry is longer."""
DRAIN_S = 60.0
"""Then, until every webhook must have been taken."""
ACCOUNTS = ("ada", "ben", "cyd")
GONE_S = 15.0
VAIN_S = 1.0
STAGES_A_JOB = 3.3
HEAD_START = 5
HURRY = 0.7
"""Share of the time after which all faults are allowed."""


@dataclass
class Accident:
    """A fault that was done."""

    name: str
    at: float
    stages: list[uuid.UUID]
    detail: str
    recovery_s: list[float] = field(default_factory=list)


@dataclass
class Round:
    """What a round is to do."""

    seed: str
    jobs: int
    faults: int
    deck: list[Fault]
    limit_s: float
    """After so long no fault is begun."""
    environment: dict[str, str] = field(default_factory=dict)
    jobs_at_once: int = 1
    """Of every worker; with more than one, most jobs are alike."""

    @staticmethod
    def say(line: str) -> None:
        """Tell whoever watches."""
        sys.stderr.write(f"{line}\n")


def run_round(plan: Round, folder: Path) -> dict[str, Any]:
    """Do a round and return its record, ready for JSON."""
    began = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    rng = random.Random(plan.seed)
    shares = {"WORKER_JOBS_AT_ONCE": str(plan.jobs_at_once)}
    installation = Installation(folder, environment=plan.environment | shares)
    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver())
        stack.enter_context(installation)
        look = Look(lambda: installation.database_url)
        stack.callback(look.close)
        accounts = _open_accounts(installation.database_url, receiver)
        _open_endpoints(installation.api_url, accounts, receiver)
        variants = VARIANTS if plan.jobs_at_once == 1 else ALIKE
        callers = stack.enter_context(
            Callers(
                installation.api_url,
                accounts,
                rng,
                variants=variants,
                loras=stock(installation.api_url, accounts),
                hook=receiver.url,
            )
        )
        arena = Arena(installation, look, receiver, callers, rng)
        plan.say(f"  up after {time.monotonic() - began:.0f} s")
        accidents = _attack(arena, plan)
        plan.say(f"  {len(accidents)} faults by {time.monotonic() - began:.0f} s; settling")
        _settle(arena)
        recovery_times(accidents, arena.signs)
        findings = judge(arena)
        plan.say(f"  judged after {time.monotonic() - began:.0f} s")
    gone_by = time.monotonic() + GONE_S
    while (left := stragglers(installation.run, installation.folder)) and time.monotonic() < gone_by:
        time.sleep(0.2)
    record = _record(plan, accidents, findings, installation, left)
    if is_clean(record):
        shutil.rmtree(folder, ignore_errors=True)
    return record | {"seconds": round(time.monotonic() - began, 1)}


def _open_accounts(database_url: str, receiver: Receiver) -> list[Account]:
    engine = make_engine(database_url)
    try:
        issued = [issue_key(session_factory(engine, VAULT), account=name) for name in ACCOUNTS]
    finally:
        engine.dispose()
    receiver.secrets |= {key.account: key.webhook_secret for key in issued}
    return [Account(key.account, key.text) for key in issued]


def _open_endpoints(api_url: str, accounts: list[Account], receiver: Receiver) -> None:
    """Let every account be told of all its jobs, by an endpoint with a secret of its own."""
    for account in accounts:
        url = receiver.url(account.name, "all")
        headers = {"Authorization": f"Bearer {account.key}"}
        answer = httpx.post(f"{api_url}/webhooks", json={"url": url}, headers=headers, timeout=20)
        answer.raise_for_status()
        receiver.secrets[f"/{account.name}/all"] = answer.json()["secret"]


def _attack(arena: Arena, plan: Round) -> list[Accident]:
    """Keep jobs under way and do faults until both are done, or the time is over."""
    accidents: list[Accident] = []
    deck = list(plan.deck)
    began = time.monotonic()
    while (passed_s := time.monotonic() - began) < plan.limit_s:
        enough = len(accidents) >= plan.faults
        ordered = len(arena.callers.orders) + arena.callers.busy
        if ordered < plan.jobs or not enough:
            _keep_busy(arena)
        elif enough:
            break
        if not enough and len(accidents) < _allowed(arena, plan, passed_s):
            accident = _next(arena, deck)
            if accident is not None:
                accidents.append(accident)
                plan.say(f"  {len(accidents):3d} {accident.name}: {accident.detail}")
                arena.sleep(arena.rng.uniform(*GAP_S))
        arena.tick()
    return accidents


def _allowed(arena: Arena, plan: Round, passed_s: float) -> float:
    """How many faults may have been done by now: they follow the stages that end, so that they meet all kinds of them.

    A round that is running out of time does not wait for that.
    """
    ended = sum(sign.what == "end" for sign in arena.signs) / (plan.jobs * STAGES_A_JOB)
    return HEAD_START + plan.faults * max(ended, passed_s / (plan.limit_s * HURRY))


def _keep_busy(arena: Arena) -> None:
    if len(arena.unfinished) + arena.callers.busy < IN_FLIGHT:
        arena.callers.submit()


def _next(arena: Arena, deck: list[Fault]) -> Accident | None:
    """Do the first fault of the deck that can be done now; one that waited in vain goes to the end."""
    for place, fault in enumerate(deck):
        began = time.monotonic()
        struck: Struck | None = fault.act(arena)
        if struck is not None:
            del deck[place]
            return Accident(fault.name, struck.at, struck.stages, struck.detail, list(struck.recovery_s))
        if time.monotonic() > began + VAIN_S:
            deck.append(deck.pop(place))
            return None
    return None


def _settle(arena: Arena) -> None:
    """End all effects, and wait until every job has ended and every webhook was taken, or ought to have."""
    arena.settle()
    arena.installation.proxies.open_all()
    arena.wait(lambda: not arena.callers.busy, STILL_S)
    open_jobs = "SELECT count(*) FROM jobs WHERE finished_at IS NULL"
    arena.wait(lambda: arena.look.value(open_jobs) == 0 or arena.stillness_s > STILL_S, 10 * STILL_S)
    pending = "SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'"
    arena.wait(lambda: arena.look.value(pending) == 0, DRAIN_S)
    arena.sleep(1)


def _record(
    plan: Round, accidents: list[Accident], findings: dict[str, Any], installation: Installation, left: list[str]
) -> dict[str, Any]:
    return {
        "seed": plan.seed,
        "faults": len(accidents),
        "by_fault": dict(sorted(Counter(accident.name for accident in accidents).items())),
        "recovery_s": {
            name: [round(second, 2) for one in accidents if one.name == name for second in one.recovery_s]
            for name in sorted({accident.name for accident in accidents})
        },
        "accidents": [
            {
                "name": one.name,
                "at": round(one.at, 2),
                "stages": [str(stage) for stage in one.stages],
                "detail": one.detail,
            }
            for one in accidents
        ],
        "crashes": [f"{crash.name} ended with {crash.status}: {crash.tail[-1500:]}" for crash in installation.crashes],
        "orphans": left,
        **findings,
    }
