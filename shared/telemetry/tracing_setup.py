"""Enables tracing according to the standard OpenTelemetry variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

from shared.domain.errors import HeadraceError
from shared.telemetry.tracing import NO_TRACES, Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTERS = ("otlp", "console")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")


class TracingError(HeadraceError):
    """The value of an OpenTelemetry variable is not supported."""


def configured_exporter(environ: Mapping[str, str] = os.environ) -> str | None:
    """The exporter that OpenTelemetry's variables configure; None if tracing is disabled.

    Raises:
        TracingError: a value is not supported; the message names the variable and the supported values.
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
    """Start tracing in this process if it is configured.

    Raises:
        TracingError: as `configured_exporter`.
    """
    exporter = configured_exporter()
    if exporter is None:
        return NO_TRACES
    from shared.telemetry.otel import OtelTraces

    return OtelTraces(exporter, service, instance)
