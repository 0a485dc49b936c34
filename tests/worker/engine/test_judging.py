"""What a report says of how alike a job's pictures are to those it was given, and when it says nothing."""

import logging

import pytest

from duolora.images import list_pictures, open_pictures
from duolora.models.registry import load_base
from duolora.runtime import choose_runtime
from duolora.tiny.base import base_path, samples_path
from worker.engine.judging import CSD_VARIABLE, DINO_VARIABLE, judged

GIVEN = {side: list_pictures(samples_path() / side) for side in ("content", "style")}
DRAWN = {"content": open_pictures(GIVEN["content"])}


@pytest.fixture
def no_networks(monkeypatch):
    for name in (DINO_VARIABLE, CSD_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def other_base(tmp_path):
    copy = tmp_path / "base"
    copy.symlink_to(base_path())
    return load_base(str(copy), choose_runtime("cpu"))


def test_pictures_of_the_embedded_base_are_judged_and_the_log_tells(no_networks, caplog):
    with caplog.at_level(logging.INFO, logger="worker.engine"):
        found = judged(load_base("tiny", choose_runtime("cpu")), DRAWN, GIVEN)
    assert found is not None
    assert found["loras"]["content"]["content"] > 0.8
    assert "what the content LoRA draws: content 0." in caplog.text


def test_without_pictures_of_its_own_a_job_has_nothing_to_compare_with(no_networks):
    assert judged(load_base("tiny", choose_runtime("cpu")), DRAWN, {}) is None


def test_another_base_without_networks_is_not_judged(no_networks, other_base):
    assert judged(other_base, DRAWN, GIVEN) is None


def test_a_network_that_cannot_be_loaded_costs_a_line_in_the_log(
    no_networks, other_base, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv(DINO_VARIABLE, str(tmp_path / "nothing"))
    with caplog.at_level(logging.WARNING, logger="worker.engine"):
        assert judged(other_base, DRAWN, GIVEN) is None
    assert DINO_VARIABLE in caplog.text
