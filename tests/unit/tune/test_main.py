"""The command: its arguments, its exit codes, and which models it takes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.errors import SettingError
from tests.support.stack import write_models
from tests.unit.tune.rows import MODEL, row
from tune import __main__ as command
from tune import machine
from tune.campaign import Campaign
from tune.results import Figures


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for sig, handler in before.items():
        signal.signal(sig, handler)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What measuring returns, or the error that it raises. `--write` writes to a file in the test's folder."""
    found: dict[str, Any] = {"figures": (row("", "").figures, None)}

    def measure(*_: Any) -> tuple[Figures, str | None]:
        if "raises" in found:
            raise found["raises"]
        figures: tuple[Figures, str | None] = found["figures"]
        return figures

    document = tmp_path / "tuning.md"
    document.write_text("<!-- results: begin -->before<!-- results: end -->")
    monkeypatch.setattr(command, "DOCUMENT", document)
    monkeypatch.setattr(command, "REPOSITORY", tmp_path)
    monkeypatch.setattr(command, "Campaign", partial(Campaign, measure=measure))
    monkeypatch.setattr(command, "model_of", lambda _: MODEL)
    monkeypatch.setattr(machine, "gpus", list)
    return found


def run(tmp_path: Path, *arguments: str) -> int:
    return command.main(["m", "--quick", "--output", str(tmp_path / "results"), *arguments])


def test_the_results_are_printed_and_written(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--write") == 0
    assert "For throughput: " in capsys.readouterr().out
    assert "| baseline |" in (tmp_path / "tuning.md").read_text()


def test_if_nothing_could_be_measured_it_fails_and_the_page_stays(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    results["figures"] = Figures(), "no kernel"
    assert run(tmp_path, "--write") == 1
    assert "Nothing could be measured.\nbaseline: no kernel" in capsys.readouterr().out
    assert "before" in (tmp_path / "tuning.md").read_text()


def test_ctrl_c_is_not_a_failure_of_the_options(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    results["raises"] = KeyboardInterrupt()
    assert run(tmp_path, "--write") == 130
    assert "The same command continues." in capsys.readouterr().err
    assert "before" in (tmp_path / "tuning.md").read_text()


def test_a_full_disk_is_an_error_in_one_line(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    results["raises"] = OSError(28, "No space left on device")
    assert run(tmp_path) == 1
    assert capsys.readouterr().err.endswith(
        "Ended by an error of the operating system: [Errno 28] No space left on device\n"
    )


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf", "soon"])
def test_a_limit_is_a_time(limit: str) -> None:
    with pytest.raises(SystemExit):
        command.parsed(["m", "--limit", limit])


def test_an_adapter_is_measured_with_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tone").mkdir()
    entries = [
        {"name": "base", "engine": "vllm", "model": "org/base"},
        {"name": "tone", "adapter_of": "base", "adapter": str(tmp_path / "tone")},
    ]
    file = write_models(tmp_path / "models.yaml", entries)
    monkeypatch.setattr(command, "load_settings", lambda: SimpleNamespace(models=file))
    assert command.model_of("base").name == "base"
    with pytest.raises(SettingError, match="tone is an adapter of base, in whose engine it runs:  make tune MODEL=bas"):
        command.model_of("tone")
