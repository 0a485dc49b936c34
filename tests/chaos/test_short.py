"""The short run: few jobs, one fault of each kind that shows most; two minutes on two cores, more on busy ones."""

import json

import pytest

from tests.chaos.campaign import Round, run_round
from tests.chaos.faults import TABLE
from tests.chaos.report import add_up, passed

pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.timeout(420)]

FAULTS = (
    "kill -9 between commit and publish",
    "kill -9 engine in content_lora",
    "postgres restart during progress",
    "kill -9 worker in style_lora",
    "valkey FLUSHALL",
    "store down",
    "SIGTERM during a checkpoint",
    "duplicate hints",
    "kill -9 api in merge",
    "cancel in content_lora",
    "receiver down for an hour",
    "SIGSTOP past the lease",
)
ENOUGH = 8
"""So many must have happened; on a machine that is busy with other tests the time may not do for all."""
LIMIT_S = 75


def test_accidents_cost_time_and_nothing_else(tmp_path):
    deck = [fault for name in FAULTS for fault in TABLE if fault.name == name]
    plan = Round(seed="short", jobs=3, faults=len(deck), deck=deck, limit_s=LIMIT_S)
    report = add_up(0, [run_round(plan, tmp_path / "stack")])
    assert len(deck) == len(FAULTS)
    assert passed(report), json.dumps(report["findings"], indent=1)
    assert report["jobs"] >= 3
    assert report["faults"] >= ENOUGH
