"""What the dispatcher tells Prometheus: the state of the rows, read anew whenever it is asked.

Every dispatcher tells the same, whichever of them is on duty: alerts and charts take the largest.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.jobs.gauges import look_at_work
from api.webhooks.gauges import look_at_webhooks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric
    from sqlalchemy.orm import Session, sessionmaker

    from api.jobs.gauges import WorkGauges
    from api.webhooks.gauges import WebhookGauges

log = logging.getLogger(__name__)


class RowGauges(Collector):
    """Gauges of queue, workers and webhooks. Without the database only `duolora_database_up` is told, as 0."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._sessions = sessions

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering asks the database nothing."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Read the rows."""
        up = GaugeMetricFamily("duolora_database_up", "1 if the database answered this scrape.", value=0)
        try:
            with transaction(self._sessions) as session:
                work, webhooks = look_at_work(session), look_at_webhooks(session)
        except DBAPIError as error:
            log.warning("no gauges without the database", extra={"error": type(error).__name__})
            return [up]
        up = GaugeMetricFamily("duolora_database_up", up.documentation, value=1)
        return [up, *_of_work(work), *_of_webhooks(webhooks)]


def _of_work(work: WorkGauges) -> Iterable[Metric]:
    """Return the gauges of stages, workers and hints."""
    labels = ("kind", "stage", "state")
    stages = GaugeMetricFamily("duolora_stages", "Stages that wait for a worker or have one.", labels=labels)
    oldest = GaugeMetricFamily("duolora_oldest_runnable_seconds", "Longest wait for a worker.", labels=labels[:2])
    for each in work.stages:
        stages.add_metric((each.kind, each.stage, each.state), each.count)
        if each.state == "runnable":
            oldest.add_metric((each.kind, each.stage), each.oldest_s)
    workers = GaugeMetricFamily("duolora_workers", "Workers that live, by what they do.", labels=("state",))
    for state, count in work.workers:
        workers.add_metric((state,), count)
    hints = GaugeMetricFamily("duolora_outbox_due", "Hints that are due and not published yet.", value=work.hints)
    return [stages, oldest, workers, hints]


def _of_webhooks(webhooks: WebhookGauges) -> Iterable[Metric]:
    """Return the gauges of deliveries and endpoints."""
    return [
        GaugeMetricFamily("duolora_webhooks_pending", "Deliveries that will be tried.", value=webhooks.pending),
        GaugeMetricFamily("duolora_webhook_lag_seconds", "Age of the most overdue attempt.", value=webhooks.lag_s),
        GaugeMetricFamily(
            "duolora_webhook_endpoints_disabled", "Endpoints that are off.", value=webhooks.disabled_endpoints
        ),
    ]
