"""The simulation against what is known of queues in closed form, and of jobs that never wait."""

from math import factorial

import pytest

from tests.benchmarks.load_model import Fleet, StageTime

JOBS = 30_000


def erlang_c(servers, load):
    """Share of arrivals that wait in M/M/c (Erlang, 1917); `load` is arrivals times mean service, below `servers`."""
    last = load**servers / factorial(servers) * servers / (servers - load)
    return last / (sum(load**n / factorial(n) for n in range(servers)) + last)


@pytest.mark.parametrize(("servers", "busy"), [(1, 0.5), (4, 0.7), (20, 0.8)])
def test_the_mean_wait_and_the_share_that_waits_are_those_of_erlang(servers, busy):
    fleet = Fleet({"only": StageTime(lambda chance: chance.expovariate(1.0))}, gpus=servers, seed=1)
    waits = fleet.run(jobs_a_second=servers * busy, jobs=JOBS).start
    share = erlang_c(servers, servers * busy)
    assert sum(wait > 1e-9 for wait in waits) / len(waits) == pytest.approx(share, rel=0.05)
    assert sum(waits) / len(waits) == pytest.approx(share / (servers * (1 - busy)), rel=0.1)


@pytest.mark.parametrize("busy", [0.5, 0.8])
def test_the_mean_wait_for_one_gpu_with_equal_stages_is_that_of_pollaczek_and_khinchine(busy):
    waits = Fleet({"only": StageTime.of(1.0)}, gpus=1, seed=2).run(jobs_a_second=busy, jobs=JOBS).start
    assert sum(waits) / len(waits) == pytest.approx(busy / (2 * (1 - busy)), rel=0.05)


def test_claims_queue_at_the_database_alike():
    fleet = Fleet({"only": StageTime.of(1.0)}, gpus=10_000, claims_a_second=10, seed=3)
    starts = fleet.run(jobs_a_second=8, jobs=JOBS).start
    assert sum(starts) / len(starts) == pytest.approx(0.1 + 0.1 * 0.8 / (2 * (1 - 0.8)), rel=0.05)


def test_a_job_that_never_waits_takes_its_longest_way():
    plan = {
        "content_lora": StageTime.of(3.0),
        "style_lora": StageTime.of(5.0),
        "merge": StageTime.of(2.0, "content_lora", "style_lora"),
        "package": StageTime.of(1.0, "merge"),
    }
    waits = Fleet(plan, gpus=100).run(jobs_a_second=0.1, jobs=50)
    assert waits.whole == pytest.approx([8.0] * 40)
    assert waits.start == pytest.approx([0.0] * 40)


def test_nobody_is_lost_when_more_come_than_can_be_served():
    waits = Fleet({"only": StageTime.of(1.0)}, gpus=2, seed=4).run(jobs_a_second=4, jobs=1000)
    assert len(waits.whole) == 800
    assert waits.start[-1] == pytest.approx(1000 / 2 - 1000 / 4, rel=0.1)
