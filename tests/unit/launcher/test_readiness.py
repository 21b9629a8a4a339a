"""What the launcher makes of a `/readyz` body."""

import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from launcher.readiness import ask, listens, loaded_models, missing
from shared.config.models.reload import ReloadResult
from tests.support.metrics import api_metrics


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        ({"database": "ok", "redis": "ok", "model smollm2": "no worker"}, "model smollm2 (no worker)"),
        ({"database": "ok", "workers": {"smollm2": "missing", "sim": "ok"}}, "workers smollm2 (missing)"),
        ({"database": {"status": "error", "message": "x"}}, "database (error)"),
        ({"database": "ok"}, "the last check"),
    ],
)
def test_names_what_is_missing(checks: dict[str, object], words: str) -> None:
    assert missing({"status": "starting", "checks": checks}) == words


def test_nobody_listens() -> None:
    assert ask("http://127.0.0.1:9").waiting_for == "the API to listen"
    assert not listens("127.0.0.1", 9)


def test_the_models_that_the_api_has_loaded(tmp_path: Path) -> None:
    """Read from the metrics of the API, here in a file."""
    metrics, before = api_metrics(), time.time()
    assert loaded_models(f"file://{tmp_path}") is None
    for failures in (0, 1):
        metrics.loaded(["sim"])
        (tmp_path / "metrics").write_bytes(generate_latest(metrics.registry()))
        loaded = loaded_models(f"file://{tmp_path}")
        assert loaded is not None
        assert before <= loaded.at <= time.time()
        assert loaded.failures == failures
        metrics.reloaded(ReloadResult.FAILED)
