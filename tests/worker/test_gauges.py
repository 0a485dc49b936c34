"""What the dispatcher tells Prometheus, as a process and without its database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from sqlalchemy import func, update

from api.db import make_engine, session_factory, transaction
from api.webhooks.models import DeliveryState, EndpointState, WebhookDelivery, WebhookEndpoint
from tests.worker.jobs import submit
from tests.worker.metric_samples import of_process, of_registry
from worker.dispatcher.gauges import RowGauges

if TYPE_CHECKING:
    from tests.worker.bench import Bench


def scraped(gauges: RowGauges) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(gauges)
    return of_registry(registry)


def test_a_dispatcher_is_asked_over_http(bench: Bench):
    submit(bench)
    with bench.process("worker.dispatcher", METRICS_PORT="0", DISPATCHER_REPUBLISH_AFTER_S="600"):
        seen = of_process(bench.folder / "worker.dispatcher.log")
    assert seen["duolora_database_up",] == 1
    assert seen["duolora_stages", "personalize", "content_lora", "runnable"] == 1
    assert seen["duolora_oldest_runnable_seconds", "personalize", "style_lora"] < 60
    assert seen["process_resident_memory_bytes",] > 1e6


def test_webhooks_behind_time_and_endpoints_that_are_off_are_told(bench: Bench):
    job = submit(bench, webhook_url="https://example.com/hook")
    bench.cancel(job)
    with transaction(bench.sessions) as session:
        late = func.now() - timedelta(minutes=10)
        session.execute(
            update(WebhookEndpoint).values(state=EndpointState.DISABLED, disabled_at=func.now(), disabled_reason="gone")
        )
        pending = session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.state == DeliveryState.PENDING)
            .values(next_attempt_at=late)
            .returning(WebhookDelivery.job_id)
        ).scalars()
        assert job.id in list(pending)
    seen = scraped(RowGauges(bench.sessions))
    assert seen["duolora_webhooks_pending",] >= 1
    assert 600 <= seen["duolora_webhook_lag_seconds",] < 660
    assert seen["duolora_webhook_endpoints_disabled",] >= 1


def test_without_the_database_only_its_absence_is_told():
    nowhere = make_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing", pool_size=1, application_name="test")
    assert scraped(RowGauges(session_factory(nowhere))) == {("duolora_database_up",): 0.0}
