"""Enables tracing by the standard OpenTelemetry variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

from shared.domain.errors import HeadraceError
from shared.telemetry.tracing import NO_TRACES, Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTERS = ("otlp", "console")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")


class TracingError(HeadraceError):
    """A variable of OpenTelemetry's asks for what is not there."""


def wanted(environ: Mapping[str, str] = os.environ) -> str | None:
    """The exporter that OpenTelemetry's variables ask for; None: no traces.

    Raises:
        TracingError: names the variable and what it may be.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter == "none":
        return None
    if not exporter:
        exporter = "otlp" if any(environ.get(name) for name in ENDPOINTS) else ""
    if not exporter:
        return None
    if exporter not in EXPORTERS:
        raise TracingError(f"OTEL_TRACES_EXPORTER: must be one of {', '.join(EXPORTERS)}, none; got {exporter!r}")
    for name in PROTOCOLS:
        if environ.get(name, "http/protobuf") != "http/protobuf":
            raise TracingError(f"{name}: must be http/protobuf, got {environ[name]!r}")
    return exporter


def open_traces(service: str, instance: str) -> Traces:
    """Traces of this process, where they are asked for.

    Raises:
        TracingError: as `wanted`.
    """
    exporter = wanted()
    if exporter is None:
        return NO_TRACES
    from shared.telemetry.otel import OtelTraces

    return OtelTraces(exporter, service, instance)
