"""Tests for api.http.combined_dependencies."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from api.http.dependencies import Resources, set_resources
from api.http.json_body import JsonRoute
from api.http.members import MemberReader
from shared.domain.errors import Forbidden
from tests.support.metrics import api_metrics

calls: Counter[str] = Counter()


class Body(BaseModel):
    number: int


class _Bearer(HTTPBearer):
    async def __call__(self, request: Request) -> None:
        calls["bearer"] += 1


async def user(request: Request, _: Annotated[None, Depends(_Bearer(auto_error=False))]) -> str:
    calls["user"] += 1
    if "x-forbidden" in request.headers:
        raise Forbidden("no")
    return request.headers["x-user"]


async def greeting(name: Annotated[str, Depends(user)]) -> str:
    return f"hello {name}"


async def time_zone(x_zone: Annotated[str, Header()] = "UTC") -> str:
    return x_zone


router = APIRouter(route_class=JsonRoute)


@router.post("/with-request/{place}")
async def with_request(
    place: str,
    body: Body,
    name: Annotated[str, Depends(user)],
    words: Annotated[str, Depends(greeting)],
    zone: Annotated[str, Depends(time_zone)],
    request: Request,
) -> list[object]:
    return [place, body.number, name, words, zone, request.headers["x-user"]]


@router.get("/without-request")
async def without_request(words: Annotated[str, Depends(greeting)], name: Annotated[str, Depends(user)]) -> list[str]:
    return [words, name]


@pytest.fixture
def app() -> FastAPI:
    calls.clear()
    app = FastAPI()
    app.include_router(router)
    resources = Resources()
    resources.add(MemberReader, MemberReader(api_metrics(), refuse_unknown=False))
    set_resources(app, resources)
    return app


@pytest.fixture
def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test", headers={"x-user": "ann", "x-zone": "CET"}
    )


async def test_dependencies_are_called_once_with_all_they_need(client: httpx.AsyncClient) -> None:
    response = await client.post("/with-request/here", json={"number": 3})
    assert response.json() == ["here", 3, "ann", "hello ann", "CET", "ann"]
    assert calls == {"bearer": 1, "user": 1}
    assert (await client.get("/without-request")).json() == ["hello ann", "ann"]


async def test_an_error_of_a_dependency_comes_before_those_of_the_body(client: httpx.AsyncClient) -> None:
    with pytest.raises(Forbidden):
        await client.post("/with-request/here", json={"number": "x"}, headers={"x-forbidden": "yes"})
    assert (await client.post("/with-request/here", json={"number": "x"})).status_code == 422


def test_the_description_has_the_parameters_of_all_dependencies(app: FastAPI) -> None:
    described = app.openapi()["paths"]["/with-request/{place}"]["post"]
    assert described["security"] == [{"_Bearer": []}]
    assert [parameter["name"] for parameter in described["parameters"]] == ["place", "x-zone"]
