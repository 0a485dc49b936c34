"""One trace from the request to the job, with a collector and without."""

import json
import logging
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select

from api.db import transaction
from api.jobs.models import Job
from api.settings import TracingSettings
from api.telemetry import JsonFormatter, bound, current_traceparent, current_tracestate
from api.tracing import exported, span

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACE = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.fixture
def spans():
    """What a collector was sent, by name; complete after the block of `exported`."""
    return InMemorySpanExporter()


def by_name(spans):
    return {each.name: each for each in spans.get_finished_spans()}


def hexadecimal(number, digits):
    return f"{number:0{digits}x}"


def test_without_a_collector_the_context_is_handed_on_as_it_came():
    with exported(TracingSettings(), "x"), bound(traceparent=TRACE), span("a", "consumer") as told:
        told["x"] = 1
        assert current_traceparent() == TRACE


def test_a_span_is_a_part_of_the_trace_that_is_bound(spans):
    with exported(TracingSettings(), "x", spans), bound(traceparent=TRACE), span("outer", "consumer", job="j", b=None):
        outer = current_traceparent()
        with span("inner", "client") as told:
            told["http.response.status_code"] = 204
            inner = current_traceparent()
        assert current_traceparent() == outer
    found = by_name(spans)
    assert {hexadecimal(each.context.trace_id, 32) for each in found.values()} == {TRACE_ID}
    assert hexadecimal(found["outer"].parent.span_id, 16) == SPAN_ID
    assert found["inner"].parent.span_id == found["outer"].context.span_id
    assert (outer.split("-")[2], inner.split("-")[2]) == tuple(
        hexadecimal(found[name].context.span_id, 16) for name in ("outer", "inner")
    )
    assert dict(found["outer"].attributes) == {"job": "j"}
    assert found["inner"].attributes["http.response.status_code"] == 204
    assert found["outer"].resource.attributes["service.name"] == "x"


def test_what_vendors_say_of_a_trace_goes_with_its_spans(spans):
    said = "rojo=1,congo=2"
    with (
        exported(TracingSettings(), "x", spans),
        bound(traceparent=TRACE, tracestate=said),
        span("outer", "consumer"),
    ):
        assert current_tracestate() == said
    assert by_name(spans)["outer"].context.trace_state.to_header() == said


def test_log_lines_name_the_trace_and_the_span():
    def line():
        return json.loads(JsonFormatter().format(logging.makeLogRecord({"msg": "x"})))

    with bound(traceparent=TRACE, job="j", stage="merge", attempt=2):
        document = line()
    assert (document["trace_id"], document["span_id"]) == (TRACE_ID, SPAN_ID)
    assert (document["job"], document["stage"], document["attempt"]) == ("j", "merge", 2)
    with bound(traceparent=None):
        assert not {"trace_id", "span_id"} & set(line())


@pytest.mark.parametrize("traced", [True, False])
def test_a_job_belongs_to_the_trace_of_its_request(traced, caller, sessions, spans):
    with exported(TracingSettings(), "duolora-api", spans if traced else None):
        answer = caller.submit(headers={"traceparent": TRACE, "X-Request-Id": "mine-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (202, "mine-1")
    with transaction(sessions) as session:
        kept, made_by = session.execute(select(Job.traceparent, Job.request_id)).one()
    assert made_by == "mine-1"
    if not traced:
        assert kept == TRACE
        return
    request = by_name(spans)["POST"]
    assert kept == f"00-{TRACE_ID}-{hexadecimal(request.context.span_id, 16)}-01"
    assert request.attributes["http.response.status_code"] == 202


def test_a_job_names_the_request_that_made_it_and_no_later_one(caller):
    job = caller.submit(headers={"X-Request-Id": "mine-1"}).json()
    path = job["urls"]["self"]
    canceled = caller.post(f"{path}/cancel", headers={"X-Request-Id": "mine-2"}).json()
    again = caller.post(f"{path}/retry", headers={"X-Request-Id": "mine-3"})
    assert (job["request_id"], canceled["request_id"], again.json()["request_id"]) == ("mine-1", "mine-1", "mine-3")
    assert caller.get(path, headers={"X-Request-Id": "mine-4"}).json()["request_id"] == "mine-1"
    unnamed = caller.submit()
    assert unnamed.json()["request_id"] == unnamed.headers["x-request-id"]


def test_a_collector_without_the_sdk_is_said_and_harms_nothing():
    code = (
        "import sys; sys.modules['opentelemetry.sdk.trace'] = None\n"
        "import logging; logging.basicConfig()\n"
        "from api.settings import TracingSettings; from api.tracing import exported, span\n"
        "with exported(TracingSettings(exporter_otlp_endpoint='http://127.0.0.1:1'), 'x'), span('a', 'client'):\n"
        "    print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "went on"
    assert "duolora[otel]" in done.stderr
