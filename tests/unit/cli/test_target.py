"""Which installation a command talks to; a key is sent only to the installation that it belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.errors import CannotConnect, UsageError
from cli.target import Target, find_target
from launcher.home import write_environment

URL = "http://127.0.0.1:8123"


def running(home: Path, url: str = URL) -> dict[str, str]:
    """A running installation, as the launcher records it."""
    home.mkdir()
    write_environment(home / "env", {"DATABASE_URL": "postgresql://x", "HEADRACE_URL": url})
    (home / "api_key").write_text("hr_stored\n")
    return {"HEADRACE_HOME": str(home)}


def test_running_installation_is_found_with_its_key(tmp_path: Path) -> None:
    environment = running(tmp_path / "home")
    assert find_target(None, environment) == Target(URL, "hr_stored", local=True)
    assert find_target(f"{URL}/v1/", environment) == Target(URL, "hr_stored", local=True)
    assert find_target(None, environment | {"HEADRACE_API_KEY": "hr_mine"}).api_key == "hr_mine"


def test_stored_key_is_not_sent_elsewhere(tmp_path: Path) -> None:
    environment = running(tmp_path / "home")
    assert find_target("https://example.com/", environment) == Target("https://example.com", None, local=False)
    assert find_target("http://127.0.0.1:8124", environment).api_key is None


def test_key_of_the_environment_may_be_the_only_one(tmp_path: Path) -> None:
    environment = running(tmp_path / "home")
    (tmp_path / "home" / "api_key").unlink()
    assert find_target(None, environment).api_key is None


def test_without_an_installation_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CannotConnect, match="Headrace is not running in") as error:
        find_target(None, {"HEADRACE_HOME": str(tmp_path)})
    assert "make up" in str(error.value.hint)
    assert "HEADRACE_URL" in str(error.value.hint)
    assert "HEADRACE_HOME" in str(error.value.hint)


@pytest.mark.parametrize("url", ["example.com", "ftp://example.com", "http://", "http://[::1", "http://host:x"])
def test_addresses_that_are_none_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a URL"):
        find_target(url, {"HEADRACE_HOME": str(tmp_path)})
