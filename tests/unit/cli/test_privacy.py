"""`headrace redact` and `headrace erase`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.command_line import run
from tests.support.scripted_api import ScriptedApi, reply

PREVIEW = "/v1/admin/redaction/preview"
REDACTED = {"object": "redaction.preview", "text": "Card [CARD]", "counts": {"card": 1}}


def erasure(*, complete: bool = True, **members: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"erased": {}, "unended_batches": [], "exports": [], "named_in": []}
    return {"id": "ann", "object": "user.data.erasure", "complete": complete, **empty, **members}


def test_a_text_is_redacted(api: ScriptedApi, tmp_path: Path) -> None:
    api.on(f"POST {PREVIEW}", reply(REDACTED))
    file, rules = tmp_path / "text", tmp_path / "rules.json"
    file.write_text("Card 4111 1111 1111 1111")
    rules.write_text(json.dumps({"kinds": ["card"]}))
    result = run(api.url, "redact", str(file), "--rules", str(rules))
    assert (result.exit_code, result.stdout) == (0, "Card [CARD]\n"), result.stderr
    assert result.stderr == "card: 1\n"
    assert api.requests[-1].json == {"text": "Card 4111 1111 1111 1111", "rules": {"kinds": ["card"]}}
    run(api.url, "redact", str(file), "--project", "shop")
    assert api.requests[-1].json["project"] == "shop"


def test_a_file_that_cannot_be_read_is_an_error_of_usage(api: ScriptedApi, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text("{")
    assert run(api.url, "redact", str(tmp_path / "missing")).exit_code == 2
    assert run(api.url, "redact", str(tmp_path / "rules.json"), "--rules", str(tmp_path / "rules.json")).exit_code == 2


def test_a_user_is_erased_until_nothing_is_left(api: ScriptedApi) -> None:
    export = {"id": "export_3", "created_at": "2026-11-29T08:00:00Z", "level": "redacted", "rows": 1}
    api.on(
        "DELETE /v1/users/ann%2F1/data",
        reply(erasure(complete=False, erased={"jobs": 200}), status=202),
        reply(erasure(erased={"jobs": 5, "log_rows": 5}, exports=[export], named_in=["budget_3"])),
    )
    result = run(api.url, "erase", "ann/1", "--project", "shop", "--yes")
    assert (result.exit_code, result.stdout) == (0, "jobs: 205, log rows: 5\n"), result.stderr
    assert "export_3" in result.stderr
    assert "budget_3" in result.stderr
    assert len(api.requests) == 2
    assert "project=shop" in api.requests[0].path


def test_a_batch_that_has_not_ended_is_reported(api: ScriptedApi) -> None:
    left = erasure(complete=False, unended_batches=["batch_1"])
    api.on("DELETE /v1/users/ann/data", reply(left, status=202))
    result = run(api.url, "erase", "ann", "--yes")
    assert result.exit_code == 1
    assert "batch_1" in result.stderr


def test_nothing_is_erased_without_a_yes(api: ScriptedApi) -> None:
    assert run(api.url, "erase", "ann").exit_code == 2
    assert not api.requests
