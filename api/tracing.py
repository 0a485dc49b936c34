"""Spans for an OpenTelemetry collector, if there is one; otherwise the trace context is handed on as it came.

A collector is named by OTEL_EXPORTER_OTLP_ENDPOINT, and the SDK comes with the extra `otel`. Its other OTEL_* variables
are read by itself. Knows no web framework: the worker and the dispatcher make spans too.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from api.telemetry import bound, current_traceparent, current_tracestate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from api.settings import TracingSettings

log = logging.getLogger(__name__)

Kind = Literal["server", "client", "consumer"]
Told = dict[str, str | int | float]
"""Attributes of a span, by the names of OpenTelemetry's semantic conventions where there are any."""

_providers: list[TracerProvider] = []
"""The provider of the process, once one was started."""


@contextmanager
def exported(settings: TracingSettings, service: str, exporter: SpanExporter | None = None) -> Iterator[None]:
    """Send the spans made inside the block to the collector, the last of them at its end."""
    if exporter is None and (settings.exporter_otlp_endpoint is None or settings.sdk_disabled):
        yield
        return
    try:
        provider = _start(service, exporter)
    except ImportError:
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but there is no SDK; install duolora[otel]")
        yield
        return
    _providers.append(provider)
    try:
        yield
    finally:
        _providers.remove(provider)
        provider.shutdown()


@contextmanager
def span(name: str, kind: Kind, **attributes: str | int | None) -> Iterator[Told]:
    """Time what happens inside, as a part of the trace that is bound; log lines and calls inside belong to it.

    What is put into the yielded dictionary becomes attributes as well.
    """
    told: Told = {key.replace("__", "."): value for key, value in attributes.items() if value is not None}
    if not _providers:
        yield told
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - an extra
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier = TraceContextTextMapPropagator()
    came = {"traceparent": current_traceparent() or "", "tracestate": current_tracestate() or ""}
    parent = carrier.extract(came)
    tracer = _providers[-1].get_tracer("duolora")
    with tracer.start_as_current_span(name, context=parent, kind=SpanKind[kind.upper()]) as made:
        handed_on: dict[str, str] = {}
        carrier.inject(handed_on)
        with bound(traceparent=handed_on["traceparent"], tracestate=handed_on.get("tracestate")):
            try:
                yield told
            finally:
                made.set_attributes(told)


def _start(service: str, exporter: SpanExporter | None) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    return provider
