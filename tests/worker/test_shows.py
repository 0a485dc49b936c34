"""Outputs that are shown before their stage is done, and a store that takes its time over them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from api.storage import ObjectStore
from tests.worker.bench import PATIENCE_S, eventually
from tests.worker.jobs import submit

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker.bench import Bench

SHOWS = {"content_lora": ["show:gate"]}


class SlowStore(ObjectStore):
    """Takes pictures only once it is let."""

    def __init__(self, settings) -> None:
        super().__init__(settings)
        self.asked = threading.Event()
        self.let = threading.Event()

    def put_file(self, key: str, path: Path, content_type: str) -> None:
        if key.endswith("/first.png"):
            self.asked.set()
            assert self.let.wait(2 * PATIENCE_S)
        super().put_file(key, path, content_type)


@pytest.fixture
def slow(store_settings) -> Iterator[SlowStore]:
    store = SlowStore(store_settings)
    yield store
    store.let.set()


def shown(bench: Bench, job_id: uuid.UUID) -> list[str]:
    return sorted(artifact.name for artifact in bench.read(job_id).artifacts if artifact.filename.endswith(".png"))


def test_a_picture_is_there_before_its_stage_is_done(bench: Bench):
    job = submit(bench)
    with bench.worker(SHOWS):
        eventually(lambda: shown(bench, job.id) == ["first"])
        assert bench.state(job.id) == "running"
        bench.open("gate")
        bench.wait_for(job.id, "succeeded")


def test_a_picture_that_is_shown_while_the_worker_shuts_down_is_not_lost(bench: Bench):
    job = submit(bench)
    with bench.worker(SHOWS):
        eventually(lambda: shown(bench, job.id) == ["first"])
    assert bench.stage(job.id, "content_lora").state == "runnable"
    assert shown(bench, job.id) == ["first", "last"]


def test_a_store_that_takes_its_time_over_a_picture_does_not_hold_up_a_cancel(bench: Bench, slow: SlowStore):
    job = submit(bench)
    with bench.worker(SHOWS, store=slow):
        assert slow.asked.wait(PATIENCE_S)
        bench.cancel(job)
        bench.wait_for(job.id, "canceled")
        assert not slow.let.is_set()
    assert shown(bench, job.id) == []


def test_nor_the_end_of_the_stage_which_brings_the_other_outputs(bench: Bench, slow: SlowStore):
    job = submit(bench)
    with bench.worker(SHOWS, store=slow):
        assert slow.asked.wait(PATIENCE_S)
        bench.open("gate")
        bench.wait_for(job.id, "succeeded")
        assert not slow.let.is_set()
