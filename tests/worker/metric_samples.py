"""Metrics as Prometheus reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.worker.bench import eventually

if TYPE_CHECKING:
    from pathlib import Path

Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """Name and the labels' values, in the order of the labels' names -> value."""
    families = text_string_to_metric_families(text)
    return {
        (each.name, *dict(sorted(each.labels.items())).values()): each.value
        for family in families
        for each in family.samples
    }


def of_registry(registry: CollectorRegistry) -> Samples:
    """What a registry of this process tells."""
    return samples(generate_latest(registry).decode())


def of_process(log: Path) -> Samples:
    """What a process tells at the port that its log names."""

    def port() -> int | None:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return next((line["port"] for line in lines if line["message"] == "metrics are told"), None)

    return samples(httpx.get(f"http://127.0.0.1:{eventually(port)}/metrics").text)
