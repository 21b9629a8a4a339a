"""The application: its routes, middleware, error responses and resources."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp

from api.admin.audit import routes as audit
from api.admin.budgets import routes as budgets
from api.admin.fleet import routes as fleet
from api.admin.keys import routes as admin_keys
from api.admin.limits import routes as admin_limits
from api.admin.prices import routes as admin_prices
from api.admin.redaction import routes as redaction
from api.anthropic import error_shape as anthropic_errors
from api.anthropic import routes as anthropic
from api.batches import routes as batches
from api.cache import routes as cache
from api.console import calls as console_calls
from api.console import errors as console_errors
from api.console.install import install_console
from api.console.middleware import ConsoleMiddleware
from api.erasure import routes as erasure
from api.evals import routes as evals
from api.evals.rubrics import RubricBook, load_rubrics
from api.feedback import routes as feedback
from api.feedback.middleware import FeedbackTokenMiddleware
from api.files import routes as files
from api.http import errors
from api.http.conventions import Conventions
from api.http.dependencies import set_resources
from api.http.middleware.body_limit import BodyLimitMiddleware
from api.http.middleware.cors import allow_origins
from api.http.middleware.head import HeadMiddleware
from api.http.middleware.interrupted import InterruptedResponses
from api.http.middleware.metrics import MetricsMiddleware
from api.http.middleware.paths import PathMiddleware
from api.http.middleware.region_redirect import RegionRedirectMiddleware
from api.http.middleware.request_id import RequestIdMiddleware
from api.http.middleware.shutdown import ShutdownMiddleware
from api.http.middleware.tracing import TracingMiddleware
from api.http.openapi import HEADERS
from api.http.server import Connections
from api.jobs import cost_estimate, route_query
from api.jobs import routes as jobs
from api.keys.middleware import AuthenticationMiddleware
from api.monitoring import health
from api.openai import routes as openai
from api.pages import routes as pages
from api.quality import routes as quality
from api.requests import routes as requests
from api.resources import RESERVED_FILES, open_resources
from api.responses import routes as responses
from api.routing.complexity_loader import load_complexity
from api.savings import routes as savings
from api.settings import ApiSettings
from api.usage import organization_routes as organization_usage
from api.usage import routes as usage
from api.webhooks import routes as webhooks
from shared.config.models.loader import load_registry
from shared.domain.version import VERSION
from shared.runtime.gc_tuning import freeze_gc
from shared.runtime.reload_signal import ReloadSignal
from shared.telemetry.instruments import Exporter
from shared.telemetry.logs import redact_errors
from shared.telemetry.metrics import Metrics
from shared.telemetry.tracing_setup import open_traces

DESCRIPTION = (
    "Self-hosted, queue-based, asynchronous LLM inference. Every call is a job: committed, queued, run by vLLM."
)

# Where browsers need no key, because a token in the body says what they may do.
OPEN_PATHS = (feedback.PATH,)


class Application(FastAPI):
    """The application. Its outermost layer answers browsers' preflight requests."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI description, with the headers that its responses refer to."""
        described = super().openapi()
        described["components"]["headers"] = HEADERS
        return described

    def setup(self) -> None:
        """Add the route of the description. FastAPI's own builds it on the event loop, which takes a second or more."""
        url, self.openapi_url = self.openapi_url, None
        super().setup()
        self.openapi_url = url
        building = asyncio.Lock()

        async def description(request: Request) -> JSONResponse:
            async with building:
                described = self.openapi_schema
                if described is None:
                    described = await asyncio.to_thread(self.openapi)
            root_path = request.scope.get("root_path", "").rstrip("/")
            servers = [{"url": root_path}] if root_path else []
            return JSONResponse({**described, "servers": servers} if servers else described)

        if url:
            self.add_route(url, description, include_in_schema=False)

    def build_middleware_stack(self) -> ASGIApp:
        return allow_origins(super().build_middleware_stack(), self.state.cors_origins, OPEN_PATHS)


def create_app(settings: ApiSettings, reload_signal: ReloadSignal | None = None) -> FastAPI:
    """Create the application. It opens its resources at startup, and reads models.yaml again at `reload_signal`.

    Raises:
        shared.config.models.base.RegistryError: models.yaml is invalid.
        api.evals.rubrics.RubricsError: rubrics.yaml is invalid.
        api.routing.errors.RoutingModelError: the file of HEADRACE_ROUTING_MODEL cannot be used.
        shared.telemetry.tracing_setup.TracingError: an OpenTelemetry variable is invalid.
    """
    registry = load_registry(settings.models)
    complexity = load_complexity(settings.routing_model)
    rubrics = RubricBook(load_rubrics(settings.rubrics, registry.models))
    conventions: tuple[Conventions, ...] = (anthropic_errors.CONVENTIONS,)
    if settings.console == "on":
        conventions += (console_calls.CONVENTIONS, console_errors.CONVENTIONS)
    metrics = Metrics(Exporter.API, registry.models)
    metrics.loaded(registry.models)
    traces = open_traces("headrace-api", f"{socket.gethostname()}-{os.getpid()}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        reloads = reload_signal or ReloadSignal()
        async with open_resources(settings, registry, metrics, reloads, complexity, rubrics, traces) as resources:
            set_resources(app, resources)
            freeze_gc()
            redact_errors()
            yield

    app = Application(
        title="Headrace",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.cors_origins = settings.cors_origins
    app.state.connections = Connections(settings, settings.send_timeout_s, metrics, reserved_files=RESERVED_FILES)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(FeedbackTokenMiddleware)
    app.add_middleware(
        BodyLimitMiddleware, limit=settings.max_body_bytes, streamed=(files.PATH, console_calls.FILES_PATH)
    )
    if settings.console == "on":
        app.add_middleware(ConsoleMiddleware)
    app.add_middleware(
        AuthenticationMiddleware, metrics=metrics, api_key_prefix=anthropic_errors.PREFIX, open_paths=OPEN_PATHS
    )
    if settings.regions:
        app.add_middleware(RegionRedirectMiddleware, own=settings.region, regions=settings.regions)
    app.add_middleware(ShutdownMiddleware)
    if traces.enabled:
        app.add_middleware(TracingMiddleware, traces=traces)
    app.add_middleware(RequestIdMiddleware, conventions=conventions)
    app.add_middleware(PathMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_middleware(InterruptedResponses, metrics=metrics)
    errors.install(app, conventions)
    app.include_router(jobs.router)
    app.include_router(route_query.router)
    app.include_router(openai.router)
    app.include_router(responses.router)
    app.include_router(anthropic.router)
    app.include_router(files.router)
    app.include_router(batches.router)
    app.include_router(webhooks.router)
    app.include_router(cache.router)
    app.include_router(feedback.router)
    app.include_router(quality.router)
    app.include_router(savings.router)
    app.include_router(requests.router)
    app.include_router(usage.router)
    app.include_router(cost_estimate.router)
    app.include_router(organization_usage.router)
    app.include_router(evals.router)
    app.include_router(fleet.router)
    app.include_router(admin_keys.router)
    app.include_router(budgets.router)
    app.include_router(admin_prices.router)
    app.include_router(audit.router)
    app.include_router(admin_limits.router)
    app.include_router(redaction.router)
    app.include_router(erasure.router)
    app.include_router(health.router)
    pages.install(app, console=settings.console == "on")
    if settings.console == "on":
        install_console(app)
    return app
