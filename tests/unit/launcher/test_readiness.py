"""What the launcher makes of a `/readyz` body."""

import pytest

from launcher.readiness import ask, listens, missing


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
