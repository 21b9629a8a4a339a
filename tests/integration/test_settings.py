"""A process with an invalid setting does not start: it names the variable and exits with status 2."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TEST_REDIS_DB, Servers
from tests.support.forked import run_forked
from tests.support.stack import write_models

API, WORKER, KEYS, MIGRATIONS = ("api",), ("workers", "sim"), ("api.keys", "list"), ("migrations", "current")
BOTH = [API, WORKER]
ALL = [*BOTH, KEYS, MIGRATIONS]
UNSET = None


def start(tmp_path: Path, command: tuple[str, ...], **settings: str | None) -> subprocess.CompletedProcess[str]:
    """Run a command with valid settings, except for those given."""
    valid: dict[str, str | None] = {
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "HEADRACE_MODELS": str(write_models(tmp_path / "models.yaml", [{"name": "sim", "engine": "simulated"}])),
        "HEADRACE_PORT": "0",
    }
    environment = {name: value for name, value in {**os.environ, **valid, **settings}.items() if value is not None}
    return run_forked(*command, environment=environment)


@pytest.mark.parametrize(
    ("command", "url"),
    [
        *((command, UNSET) for command in ALL),
        *((command, "mysql://user@host/name") for command in ALL),
        (API, ""),
        (API, "/var/lib/postgresql"),
        (API, "postgresql:/name"),
        (API, "postgresql://host:port/name"),
    ],
)
def test_database_url(tmp_path: Path, command: tuple[str, ...], url: str | None) -> None:
    result = start(tmp_path, command, DATABASE_URL=url)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("DATABASE_URL: ")
    assert "required" in line if url is UNSET else "postgresql://user:password@host:port/database" in line


@pytest.mark.parametrize(
    ("command", "url"),
    [
        *((command, UNSET) for command in BOTH),
        (API, ""),
        (API, "http://host"),
        (API, "host:6379"),
        (API, "redis://host:port/0"),
        (API, "redis://host:99999/0"),
    ],
)
def test_redis_url(tmp_path: Path, command: tuple[str, ...], url: str | None) -> None:
    result = start(tmp_path, command, REDIS_URL=url)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("REDIS_URL: ")
    assert "required" in line if url is UNSET else "redis://host:port/0" in line


@pytest.mark.parametrize(
    ("command", "name", "value", "words"),
    [
        (API, "HEADRACE_PORT", "eighty", "valid integer"),
        (API, "HEADRACE_PORT", "70000", "less than or equal to 65535"),
        (API, "HEADRACE_MAX_BODY_BYTES", "0", "greater than or equal to 1024"),
        (API, "HEADRACE_MAX_MEDIA_BYTES", "4000000", "HEADRACE_MAX_BODY_BYTES, which is 4194304, to more than that"),
        (API, "HEADRACE_LOG_LEVEL", "loud", "must be one of"),
        (API, "HEADRACE_REGION", "EU", "match pattern"),
        (API, "HEADRACE_REGIONS", "us=https://us.example", "requires HEADRACE_REGION"),
        (API, "HEADRACE_ROUTING_MODEL", "/none/model.json", "No such file or directory; correct the path"),
        (API, "HEADRACE_FILES", "gs://bucket/prefix", "s3://bucket/prefix"),
        (API, "HEADRACE_FILES", "s3:///prefix", "s3://bucket/prefix"),
        (API, "HEADRACE_FILES", "", "s3://bucket/prefix"),
        (API, "HEADRACE_FILE_RETENTION_S", "-1", "greater than or equal to 0"),
        (WORKER, "HEADRACE_LOG_LEVEL", "loud", "must be one of"),
        (WORKER, "HEADRACE_LEASE_S", "0", "greater than 0"),
        (WORKER, "HEADRACE_DRAIN_S", "-1", "greater than or equal to 0"),
        (WORKER, "HEADRACE_MAX_ATTEMPTS", "many", "valid integer"),
    ],
)
def test_an_invalid_setting_is_named(
    tmp_path: Path, command: tuple[str, ...], name: str, value: str, words: str
) -> None:
    result = start(tmp_path, command, **{name: value})
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{name}: ")
    assert words in line


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ("https://us.example", "'https://us.example'"),
        ("US=https://us.example", "'US'"),
        ("us=us.example", "us: must be"),
    ],
)
def test_invalid_regions_are_named(tmp_path: Path, regions: str, words: str) -> None:
    result = start(tmp_path, API, HEADRACE_REGION="eu", HEADRACE_REGIONS=regions)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("HEADRACE_REGIONS: ")
    assert words in line


def test_each_missing_variable_is_named(tmp_path: Path) -> None:
    result = start(tmp_path, API, DATABASE_URL=UNSET, REDIS_URL=UNSET)
    assert result.returncode == 2
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["DATABASE_URL", "REDIS_URL"]


@pytest.mark.parametrize("command", BOTH, ids=" ".join)
def test_models_yaml(tmp_path: Path, command: tuple[str, ...]) -> None:
    models = tmp_path / "wrong.yaml"
    models.write_text("models:\n  - name: sim\n    engine: simulatd\n")
    result = start(tmp_path, command, HEADRACE_MODELS=str(models))
    assert result.returncode == 2
    assert f"{models}, line 3: models[0].engine: must be one of" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_an_unreachable_database(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = start(tmp_path, command)
    assert result.returncode != 0
    assert "DATABASE_URL: the database cannot be" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", BOTH, ids=" ".join)
def test_a_database_without_tables(tmp_path: Path, servers: Servers, command: tuple[str, ...]) -> None:
    result = start(tmp_path, command, DATABASE_URL=servers.postgres_url, REDIS_URL=servers.redis(TEST_REDIS_DB))
    assert result.returncode == 2
    assert "python -m migrations upgrade" in result.stderr
    assert "Traceback" not in result.stderr
