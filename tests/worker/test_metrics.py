"""What a worker tells Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.worker.bench import eventually
from tests.worker.jobs import submit
from tests.worker.metric_samples import of_process, of_registry

if TYPE_CHECKING:
    from tests.worker.bench import Bench

ENDED = "duolora_attempt_seconds_count"


def test_attempts_are_counted_by_outcome_and_stage_and_engines_by_start(bench: Bench) -> None:
    with bench.worker({"content_lora": ["die", "ok"]}) as worker:
        job = submit(bench)
        bench.wait_for(job.id, "succeeded")
        seen = eventually(
            lambda: (now := of_registry(worker.registry)).get((ENDED, "duolora", "succeeded", "package")) and now
        )
    assert {key[1:]: value for key, value in seen.items() if key[0] == ENDED} == {
        ("duolora", "retry", "content_lora"): 1,
        ("duolora", "succeeded", "content_lora"): 1,
        ("duolora", "succeeded", "style_lora"): 1,
        ("duolora", "succeeded", "merge"): 1,
        ("duolora", "succeeded", "package"): 1,
    }
    assert seen["duolora_engine_starts_total",] == 2
    assert seen["duolora_engine_up",] == 1


def test_a_worker_is_asked_over_http(bench: Bench) -> None:
    with bench.process("worker", METRICS_PORT="0"):
        job = submit(bench)
        bench.wait_for(job.id, "succeeded")
        log = bench.folder / "worker.log"
        eventually(lambda: of_process(log).get((ENDED, "duolora", "succeeded", "package")) == 1)
        assert of_process(log)["duolora_engine_up",] == 1
