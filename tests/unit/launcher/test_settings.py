"""Settings of `make up`: defaults, and errors that name the variable and the fix."""

import socket
from pathlib import Path

import pytest

from launcher.errors import SettingError
from launcher.ports import check_free
from launcher.settings import REPOSITORY, load_settings


def test_defaults() -> None:
    settings = load_settings({})
    assert settings.home == REPOSITORY / ".headrace"
    assert settings.models == REPOSITORY / "models.yaml"
    assert settings.api_url == "http://127.0.0.1:8000"
    assert settings.flower_url == "http://127.0.0.1:5555"
    assert settings.database_url is None


def test_simulated_engine_serves_simulated_models() -> None:
    assert load_settings({"ENGINE": "simulated"}).models.name == "models.simulated.yaml"
    assert load_settings({"ENGINE": "simulated", "HEADRACE_MODELS": "/m.yaml"}).models == Path("/m.yaml")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"HEADRACE_PORT": "http"}, "HEADRACE_PORT=http must be a whole number from 1 to 65535"),
        ({"HEADRACE_PORT": "70000"}, "HEADRACE_PORT=70000 must be"),
        ({"HEADRACE_FLOWER_PORT": "0"}, "HEADRACE_FLOWER_PORT=0 must be"),
        ({"HEADRACE_PORT": "5555"}, "HEADRACE_PORT and HEADRACE_FLOWER_PORT are both 5555"),
        ({"HEADRACE_WORKERS": "-1"}, "HEADRACE_WORKERS=-1 must be a whole number from 0 to 64"),
        ({"HEADRACE_START_TIMEOUT_S": "soon"}, "HEADRACE_START_TIMEOUT_S=soon must be"),
        ({"HEADRACE_LEASE_S": "-2"}, "HEADRACE_LEASE_S=-2 must be a number of seconds"),
        ({"HEADRACE_API_KEY": "short"}, "HEADRACE_API_KEY must have at least 16 characters"),
        ({"DATABASE_URL": "mysql://db/x"}, "DATABASE_URL must be a URL like postgresql://"),
        ({"REDIS_URL": "localhost:6379"}, "REDIS_URL must be a URL like redis://"),
        ({"HEADRACE_FLOWER_PASSWORD": "a,b"}, "HEADRACE_FLOWER_PASSWORD has a comma"),
    ],
)
def test_wrong_setting_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError) as error:
        load_settings(environ)
    assert message in str(error.value)


def test_wrong_address_is_not_repeated_for_it_may_hold_a_password() -> None:
    with pytest.raises(SettingError) as error:
        load_settings({"DATABASE_URL": "mysql://root:secret@db/x"})
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("given", ["postgres://u:p@db/x", "postgresql://u:p@db/x", "postgresql+asyncpg://u:p@db/x"])
def test_database_address_is_given_to_asyncpg(given: str) -> None:
    assert load_settings({"DATABASE_URL": given}).database_url == "postgresql+asyncpg://u:p@db/x"


def test_port_in_use_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError) as error:
            check_free("127.0.0.1", port, "HEADRACE_HOST", "HEADRACE_PORT")
    assert f"port {port} (HEADRACE_PORT) is in use; set HEADRACE_PORT to another" in str(error.value)
    check_free("127.0.0.1", port, "HEADRACE_HOST", "HEADRACE_PORT")


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SettingError, match=r"HEADRACE_HOST=192\.0\.2\.1 is not an address of this machine"):
        check_free("192.0.2.1", 8000, "HEADRACE_HOST", "HEADRACE_PORT")
