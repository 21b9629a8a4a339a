"""Requests of two projects in the log, and those who read it."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from api.keys.principal import Principal, Scope
from api.keys.store import ApiKeyStore
from api.requests.export import Exports, ExportSources
from api.requests.export_store import ExportStore
from api.requests.redactors import Redactors
from api.requests.service import LoggedRequests
from api.requests.store import LoggedRequestStore
from shared.domain.owner import Owner
from shared.telemetry.metrics import Metrics
from tests.support.database import make_owner
from tests.support.logged_requests import bodies_of
from tests.support.metrics import api_metrics


@pytest.fixture
async def other_owner(database: AsyncEngine) -> Owner:
    """Another project with one key."""
    return await make_owner(database, "other")


@pytest.fixture
def reader(owner: Owner) -> Principal:
    """Somebody who may read the requests of the project `test`."""
    return Principal(owner.project_id, owner.key_id, frozenset({Scope.LOGS}))


@pytest.fixture
def admin(owner: Owner) -> Principal:
    return Principal(owner.project_id, owner.key_id, frozenset({Scope.ADMIN}))


@pytest.fixture
def metrics() -> Metrics:
    return api_metrics()


@pytest.fixture
def requests(database: AsyncEngine, metrics: Metrics) -> LoggedRequests:
    store = LoggedRequestStore(database)
    return LoggedRequests(database, store, bodies_of(database), ApiKeyStore(database), metrics)


@pytest.fixture
def exports(database: AsyncEngine, metrics: Metrics) -> Exports:
    sources = ExportSources(LoggedRequestStore(database), bodies_of(database), Redactors(database))
    return Exports(sources, ExportStore(database), metrics)
