"""Dashboard and alert rules speak of metrics and labels that the processes really tell."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from api.db import make_engine, session_factory
from api.metrics import process_registry
from api.request_times import RequestTimes
from worker.dispatcher.gauges import RowGauges
from worker.mailbox import Mailbox
from worker.metrics import AttemptTimes, EngineGauges
from worker.settings import EngineSettings
from worker.supervisor import EngineSupervisor

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
METRIC = re.compile(r"\b(?:duolora|process)_\w+")
LABELS = {"engine", "kind", "stage", "state", "outcome", "status", "path", "device", "instance", "job", "le"}


@pytest.fixture(scope="module")
def told(test_databases) -> set[str]:
    """Names that a scrape of all processes has."""
    with test_databases.fresh() as url:
        registry, engine = CollectorRegistry(), make_engine(url, pool_size=1, application_name="test")
        registry.register(RowGauges(session_factory(engine)))
        settings = EngineSettings()
        supervisor = EngineSupervisor(settings, env=settings.environment(os.environ), mailbox=Mailbox())
        registry.register(EngineGauges(supervisor))
        AttemptTimes(registry)
        RequestTimes(registry)
        families = [family for each in (registry, process_registry()) for family in each.collect()]
        engine.dispose()
    names = set()
    for family in families:
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def expressions() -> list[str]:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    charts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [*charts, *(rule["expr"] for rule in rules)]


def test_every_metric_that_is_asked_for_is_told(told):
    asked = {name for each in expressions() for name in METRIC.findall(each)}
    assert len(asked) > 10
    assert asked - told == set()


def test_every_metric_of_ours_is_shown_or_watched(told):
    asked = {name for each in expressions() for name in METRIC.findall(each)}
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in told if name.startswith("duolora_")}
    shown = {re.sub("_(bucket|count|sum)$", "", name) for name in asked}
    assert ours - shown == {"duolora_engine_up"}  # between two stages an engine may be down


@pytest.mark.parametrize("expression", expressions())
def test_labels_are_those_that_metrics_have(expression):
    grouped = [name.strip() for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(",")]
    matched = re.findall(r"(\w+)\s*=~?\"", expression)
    assert {*grouped, *matched} <= LABELS
    assert expression.count("(") == expression.count(")")


def test_every_alert_says_what_to_do():
    for rule in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]:
        assert {"summary", "remedy"} <= rule["annotations"].keys(), rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_panels_of_the_dashboard_do_not_overlap():
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
