"""Reloads of models.yaml: all or nothing, and coalesced."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shared.config.models.loader import Registry, load_registry
from shared.config.models.reload import ModelChanges, ModelsReload, ReloadResult
from shared.domain.errors import InvalidRequest, NotFound
from tests.support.stack import write_models


def file(folder: Path, *models: dict[str, object]) -> Path:
    return write_models(folder / "models.yaml", [{"engine": "simulated", **model} for model in models])


async def test_changes_are_named(tmp_path: Path) -> None:
    old = load_registry(file(tmp_path, {"name": "a"}, {"name": "b"}, {"name": "c"})).models
    new = load_registry(file(tmp_path, {"name": "c"}, {"name": "b", "slots": 3}, {"name": "d"})).models
    assert str(ModelChanges.between(old, new)) == "added: d; changed: b; removed: a"
    assert str(ModelChanges.between(new, new)) == "no changes"


async def test_requests_during_a_reload_lead_to_one_more(tmp_path: Path) -> None:
    applying, proceed, results = asyncio.Event(), asyncio.Event(), asyncio.Queue[ReloadResult]()
    seen: list[list[str]] = []

    async def apply(loaded: Registry) -> ReloadResult:
        seen.append(list(loaded.models))
        applying.set()
        await proceed.wait()
        return ReloadResult.APPLIED

    path = file(tmp_path, {"name": "a"})
    reload = ModelsReload(path, apply, results.put_nowait)
    running = asyncio.create_task(reload.run())
    reload.request()
    reload.request()
    await applying.wait()
    file(tmp_path, {"name": "b"})
    reload.request()
    reload.request()
    proceed.set()
    assert [await results.get(), await results.get()] == [ReloadResult.APPLIED] * 2
    assert seen == [["a"], ["b"]]
    running.cancel()


@pytest.mark.parametrize("error", [InvalidRequest("UPSTREAM_API_KEY is not set"), RuntimeError("UPSTREAM_API_KEY")])
async def test_what_cannot_be_applied_is_logged(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def apply(loaded: Registry) -> ReloadResult:
        raise error

    results: list[ReloadResult] = []
    reload = ModelsReload(file(tmp_path, {"name": "a"}), apply, results.append)
    assert await reload.reload() is ReloadResult.FAILED
    assert "the models stay as they are" in caplog.text
    assert "UPSTREAM_API_KEY" in caplog.text
    (tmp_path / "models.yaml").unlink()
    assert await reload.reload() is ReloadResult.FAILED
    assert results == [ReloadResult.FAILED] * 2


def test_a_removed_model_is_not_found(tmp_path: Path) -> None:
    """Code that has checked a model's name, and then reads its entry, may be overtaken by a reload."""
    registry = load_registry(file(tmp_path, {"name": "a"}))
    registry.replace(load_registry(file(tmp_path, {"name": "b"}, {"name": "c"})).models)
    with pytest.raises(NotFound, match="The model `a` does not exist; available models: b, c"):
        registry["a"]
