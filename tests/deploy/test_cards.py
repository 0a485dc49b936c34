"""Workers and cards: who sees which GPU, on machines with and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.cards import cards, worker_environments
from deploy.local.processes import LocalStackError
from deploy.local.stack import Stack
from worker.settings import usable_cores


@pytest.fixture
def driver(tmp_path):
    """Put a driver's command that says something in front of all others."""

    def install(script: str) -> dict[str, str]:
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    return install


def test_the_driver_is_asked_for_the_cards(driver):
    assert cards(driver("[ $1 = --query-gpu=uuid ] && printf 'GPU-1f\\nGPU-2e\\n'")) == ["GPU-1f", "GPU-2e"]


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found' >&2; exit 6", "true"])
def test_a_driver_that_finds_nothing_means_no_cards(driver, script):
    assert cards(driver(script)) == []


def test_a_machine_without_a_driver_has_no_cards(tmp_path):
    assert cards({"PATH": str(tmp_path)}) == []


@pytest.mark.parametrize(("value", "expected"), [("2, 0", ["2", "0"]), ("", []), ("-1", []), ("GPU-7", ["GPU-7"])])
def test_the_callers_choice_of_cards_is_believed(driver, value, expected):
    assert cards(driver("echo GPU-1") | {"CUDA_VISIBLE_DEVICES": value}) == expected


def test_an_engine_on_the_cpu_has_no_cards(driver):
    assert cards(driver("echo GPU-1") | {"DUOLORA_DEVICE": "cpu"}) == []


def test_every_card_gets_a_worker_of_its_own():
    own = worker_environments({"ENGINE_THREADS": "3"}, ["a", "b", "c"])

    assert own == [{"CUDA_VISIBLE_DEVICES": name} for name in "abc"]


def test_more_workers_than_cards_share_them_and_fewer_leave_some_free():
    of_five = worker_environments({"ENGINE_THREADS": "1"}, ["a", "b"], workers=5)

    assert [each["CUDA_VISIBLE_DEVICES"] for each in of_five] == ["a", "b", "a", "b", "a"]
    assert worker_environments({}, ["a", "b"], workers=1) == [{"CUDA_VISIBLE_DEVICES": "a"}]


def test_one_worker_is_left_as_it_is():
    assert worker_environments({}, []) == worker_environments({}, ["a"]) == [{}]


def test_workers_without_cards_share_the_cores_unless_told_otherwise():
    share = str(max(1, (usable_cores() - 1) // 2))

    assert worker_environments({}, [], workers=2) == [{"ENGINE_THREADS": share}] * 2
    assert worker_environments({"ENGINE_THREADS": "7"}, [], workers=2) == [{}, {}]


@pytest.mark.parametrize(
    ("environment", "found", "workers", "message"),
    [({}, [], 0, "--workers"), ({"DUOLORA_DEVICE": "cuda:1"}, ["a", "b"], None, "DUOLORA_DEVICE names one card")],
)
def test_what_makes_no_sense_is_refused(environment, found, workers, message):
    with pytest.raises(LocalStackError, match=message):
        worker_environments(environment, found, workers)


def test_a_started_stack_has_a_worker_for_each_card(tmp_path, driver, service_environment):
    """Real processes: what the kernel says of the environment that the workers were started in."""
    environment = driver("echo GPU-1; echo GPU-2") | service_environment | {"WORKER_WARM_BASE": ""}
    with Stack(tmp_path / "data", environment=environment) as stack:
        seen = []
        for child in stack._children:
            if child.name.startswith("worker"):
                words = Path(f"/proc/{child.process.pid}/environ").read_text().split("\0")
                seen += [word for word in words if word.startswith("CUDA_VISIBLE_DEVICES=")]
    assert sorted(seen) == ["CUDA_VISIBLE_DEVICES=GPU-1", "CUDA_VISIBLE_DEVICES=GPU-2"]
