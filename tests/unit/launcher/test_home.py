"""HEADRACE_HOME: one launcher at a time, secrets for the owner's eyes."""

import os
import stat
from pathlib import Path

import pytest

from launcher.errors import LaunchError
from launcher.home import fresh_log, kept_secret, only_launcher, read_environment, write_environment
from launcher.parts import api_key
from launcher.settings import load_settings


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_second_launcher_is_told_who_runs(tmp_path: Path) -> None:
    second = only_launcher(tmp_path)
    refusal = pytest.raises(LaunchError, match=rf"already running .*process {os.getpid()}\)")
    with only_launcher(tmp_path), refusal, second:
        pass
    assert not (tmp_path / "lock").exists()
    with only_launcher(tmp_path):  # and again, once the first has ended
        pass


def test_unusable_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match=r"HEADRACE_HOME=.* cannot be used"), only_launcher(tmp_path / "file" / "x"):
        pass


def test_api_key_is_generated_once_and_private(tmp_path: Path) -> None:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path)})
    key = api_key(settings)
    prefix, public, secret = key.split("_", 2)
    assert (prefix, len(public), len(secret)) == ("hr", 8, 43)
    assert mode(tmp_path / "api_key") == 0o600
    assert api_key(settings) == key


def test_given_api_key_is_not_written_down(tmp_path: Path) -> None:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path), "HEADRACE_API_KEY": "hr_mine_and_no_other"})
    assert api_key(settings) == "hr_mine_and_no_other"
    assert list(tmp_path.iterdir()) == []


def test_secret_is_made_again_when_its_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    assert kept_secret(tmp_path / "s", lambda: "new") == "new"


def test_environment_comes_back_as_written(tmp_path: Path) -> None:
    variables = {"DATABASE_URL": "postgresql+asyncpg://u:it's $HOME@/x?host=/a b", "EMPTY": ""}
    write_environment(tmp_path / "env", variables)
    assert read_environment(tmp_path / "env") == variables
    assert mode(tmp_path / "env") == 0o600


def test_long_log_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with log.open("wb") as file:
        file.truncate(10_000_001)
    fresh_log(log)
    assert not log.exists()
    assert (tmp_path / "api.log.1").exists()
