"""What the API tells Prometheus, and where."""

import logging
import socket

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from api.metrics import exposed, process_registry
from api.settings import MetricsSettings


def samples(text):
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def told(registry):
    with exposed(MetricsSettings(port=0), registry) as port:
        return samples(httpx.get(f"http://127.0.0.1:{port}/metrics").text)


def test_a_registry_is_told_while_it_is_exposed_and_not_afterwards(caplog):
    registry = CollectorRegistry()
    Gauge("apples", "In the basket.", registry=registry).set(3)
    with caplog.at_level(logging.INFO), exposed(MetricsSettings(port=0), registry) as port:
        assert samples(httpx.get(f"http://127.0.0.1:{port}/metrics").text)[("apples",)] == 3
    assert next(line for line in caplog.records if line.message == "metrics are told").port == port
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_nothing_listens_unless_asked():
    with exposed(MetricsSettings(), CollectorRegistry()) as port:
        assert port is None


def test_a_taken_port_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = MetricsSettings(port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"), exposed(settings, CollectorRegistry()):
            pass


def test_every_process_tells_of_itself():
    assert told(process_registry())[("process_resident_memory_bytes",)] > 1e6


def test_requests_are_counted_by_path_and_answer_and_strangers_paths_make_no_series(http, caller):
    caller.get("/jobs/0190d9a0-0000-7000-8000-000000000000")
    caller.get("/jobs/nonsense")
    http.get("/jobs")
    for path in ("/wp-login.php", "/.env"):
        http.get(path)
    http.request("BREW", "/pot")
    name = "duolora_http_request_seconds_count"
    counted = {key[1:]: value for key, value in told(http.app.state.metrics).items() if key[0] == name}
    assert counted == {
        ("GET", "/jobs/{job_id}", "404"): 2,
        ("GET", "/jobs", "401"): 1,
        ("other", "other", "404"): 3,
    }


def test_metrics_are_not_where_callers_are(http):
    assert http.get("/metrics").status_code == 404
