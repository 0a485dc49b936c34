"""What a worker tells Prometheus: how its attempts ended, and how its engine process fares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from api.jobs.engines import EngineName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from api.jobs.repository import ClaimedStage
    from worker.supervisor import EngineSupervisor

BUCKETS_S = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
SUCCEEDED = "succeeded"


class AttemptTimes:
    """Seconds from the claim of a stage to the end of the attempt, by stage and outcome."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "duolora_attempt_seconds",
            "From the claim of a stage to the end of the attempt.",
            ("stage", "outcome", "engine"),
            registry=registry,
            buckets=BUCKETS_S,
        )

    def take(self, stages: Iterable[ClaimedStage], outcome: str, seconds: float) -> None:
        """Count attempts that ended: `succeeded`, or the name of what `worker.outcomes` made of them."""
        for stage in stages:
            engine = EngineName.DUOLORA if stage.mock_outcome is None else EngineName.MOCK
            self._seconds.labels(stage.name, outcome, engine).observe(seconds)


class EngineGauges(Collector):
    """The engine process, as its supervisor knows it at the scrape."""

    def __init__(self, engine: EngineSupervisor) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Ask the supervisor."""
        engine = self._engine
        yield CounterMetricFamily("duolora_engine_starts", "Engine processes started.", value=engine.starts)
        yield GaugeMetricFamily("duolora_engine_up", "1 while an engine process runs.", value=float(engine.is_alive()))
        held = GaugeMetricFamily(
            "duolora_engine_held_bytes",
            "Memory that the engine held when it last rested: of the GPU where it uses one.",
            labels=("device",),
        )
        if engine.held_bytes is not None:
            held.add_metric((engine.device or "unknown",), engine.held_bytes)
        yield held
