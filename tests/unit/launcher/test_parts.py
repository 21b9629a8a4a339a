"""Which processes a models.yaml makes, and what each of them is told."""

from pathlib import Path

import pytest

from launcher.errors import SettingError
from launcher.parts import Parts, check_engine, flower_password, load_models
from launcher.settings import load_settings
from shared.config.models.loader import Registry

MODELS = """\
models:
  - {name: sim, engine: simulated}
  - {name: up, engine: openai, model: x, options: {base_url: "http://127.0.0.1:1/v1", api_key_env: UP_KEY}}
  - {name: big, engine: vllm, model: org/big}
"""


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    models = tmp_path / "models.yaml"
    models.write_text(MODELS)
    settings = load_settings({"HEADRACE_MODELS": str(models), "HEADRACE_WORKERS": "2"})
    return Parts(settings, load_models(models), "postgresql+asyncpg://db/x", "redis://cache/0")


def test_a_worker_for_each_model_and_more_for_those_with_an_engine_of_their_own(parts: Parts) -> None:
    assert [child.name for child in parts.workers()] == ["worker-sim-1", "worker-up-1", "worker-big-1", "worker-big-2"]


def test_models_with_similar_names_have_workers_with_different_names(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models: [{name: a/b, engine: simulated}, {name: a-b, engine: simulated}]")
    parts = Parts(load_settings({}), load_models(models), "postgresql+asyncpg://db/x", "redis://cache/0")
    names = [child.name for child in parts.workers()]
    assert names[1] == "worker-a-b-1"
    assert len(set(names)) == 2


def test_an_upstreams_key_goes_to_its_worker_alone(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UP_KEY", "sk-secret")
    children = [parts.api(), parts.flower("password"), *parts.workers()]
    assert [child.name for child in children if "UP_KEY" in child.environment] == ["worker-up-1"]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_flower_always_has_a_password(tmp_path: Path, address: str) -> None:
    settings = load_settings({"HEADRACE_HOME": str(tmp_path), "HEADRACE_FLOWER_ADDRESS": address})
    password = flower_password(settings)
    assert len(password) >= 20
    assert flower_password(settings) == password
    assert (tmp_path / "flower_password").stat().st_mode & 0o777 == 0o600
    parts = Parts(settings, Registry({}), "postgresql+asyncpg://db/x", "redis://cache/0")
    assert parts.flower(password).environment["FLOWER_BASIC_AUTH"] == f"admin:{password}"


def test_an_engine_whose_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models.yaml"
    models.write_text(MODELS)
    settings = load_settings({"HEADRACE_MODELS": str(models), "ENGINE": "simulated"})
    monkeypatch.setenv("UP_KEY", "sk-secret")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingError, match=r"the engine of big needs the package 'vllm', which ENGINE=simulated"):
        check_engine(settings, load_models(models))


def test_an_upstreams_key_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("".join(MODELS.splitlines(keepends=True)[:-1]))
    settings = load_settings({"HEADRACE_MODELS": str(models)})
    monkeypatch.delenv("UP_KEY", raising=False)
    with pytest.raises(SettingError, match=r"are not set: UP_KEY \(of the model up\)\.\nExport"):
        check_engine(settings, load_models(models))
    monkeypatch.setenv("UP_KEY", "sk-secret")
    check_engine(settings, load_models(models))


def test_an_adapter_has_no_worker_of_its_own(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text("models: [{name: sim, engine: simulated}, {name: tone, adapter_of: sim, adapter: x}]")
    parts = Parts(load_settings({}), load_models(models), "postgresql+asyncpg://db/x", "redis://cache/0")
    assert [child.name for child in parts.workers()] == ["worker-sim-1"]
