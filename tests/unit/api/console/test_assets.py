"""The files of the console, as browsers get them."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.console.assets import ASSETS, Assets
from api.settings import ApiSettings


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(ApiSettings(database_url="postgresql://unused", redis_url="redis://unused"))


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test/console/static/") as client:
        yield client


async def test_files_are_compressed_for_browsers_that_accept_it(client: httpx.AsyncClient) -> None:
    for name, asset in ASSETS.files.items():
        compressed = await client.get(f"{ASSETS.version}/{name}")
        plain = await client.get(f"{ASSETS.version}/{name}", headers={"accept-encoding": "identity"})
        assert compressed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert compressed.content == plain.content == asset.content == gzip.decompress(asset.compressed)
        assert plain.headers["content-type"] == asset.content_type
        assert "immutable" in plain.headers["cache-control"]


async def test_files_of_another_version_are_not_kept(client: httpx.AsyncClient) -> None:
    response = await client.get("0123456789ab/console.css")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["none.css", "vendor/htmx.LICENSE.txt", "../assets.py", "%2e%2e/assets.py"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"{ASSETS.version}/{name}")).status_code in (303, 404)


def test_the_version_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("a {}")
    first = Assets(tmp_path).version
    assert Assets(tmp_path).version == first
    (tmp_path / "a.css").write_text("b {}")
    second = Assets(tmp_path).version
    (tmp_path / "a.css").rename(tmp_path / "b.css")
    assert len({first, second, Assets(tmp_path).version}) == 3
