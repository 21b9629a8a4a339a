"""The bootstrap: never a half-made environment, and errors that say what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import bootstrap
from launcher.bootstrap import BootstrapError


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty clone with a cache of its own, and an installer that installs nothing."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bootstrap, "LINK", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "_check_machine", lambda _engine: None)
    monkeypatch.setattr(bootstrap, "_make", fake_make)
    return tmp_path


def fake_make(folder: Path, _engine: str, _lock: Path) -> None:
    folder.mkdir(parents=True)
    (folder / bootstrap.STARTED).touch()


def test_environment_is_made_once_and_linked(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = bootstrap.environment("simulated", dev=False)
    assert (clone / ".venv").resolve() == python.parent.parent
    monkeypatch.setattr(bootstrap, "_make", lambda *_: pytest.fail("it is there already"))
    assert bootstrap.environment("simulated", dev=False) == python


def test_interrupted_install_is_not_taken_for_complete(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, engine: str, lock: Path) -> None:
        fake_make(folder, engine, lock)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "_make", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.environment("simulated", dev=False)
    assert not (clone / ".venv").exists()
    (made,) = (path for path in (clone / "cache" / "venvs").iterdir() if path.is_dir())
    assert not bootstrap._is_complete(made, {bootstrap.STAMP: ""})


def test_changed_lock_makes_another_environment(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = clone / "requirements"
    locks.mkdir()
    monkeypatch.setattr(bootstrap, "LOCKS", locks)
    (locks / "cpu.txt").write_text("a==1\n")
    first = bootstrap.environment("cpu", dev=False)
    (locks / "cpu.txt").write_text("a==2\n")
    assert bootstrap.environment("cpu", dev=False) != first


def test_somebodys_own_venv_is_left_alone(clone: Path) -> None:
    (clone / ".venv").mkdir()
    with pytest.raises(BootstrapError, match="was not made by `make up`"):
        bootstrap.environment("simulated", dev=False)
    assert (clone / ".venv").is_dir()


def test_without_a_cache_the_environment_is_in_the_clone(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "file").touch()
    monkeypatch.setenv("HEADRACE_CACHE", str(clone / "file"))
    assert bootstrap.environment("simulated", dev=False).parent.parent == clone / ".venv"


def test_unknown_engine_lists_the_known() -> None:
    with pytest.raises(BootstrapError, match="ENGINE=tpu is not known; choose one of: cpu, gpu, simulated"):
        bootstrap.environment("tpu", dev=False)


def test_other_platforms_are_told_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(BootstrapError) as error:
        bootstrap._check_machine("cpu")
    assert "this is Linux on arm64" in str(error.value)
    assert "ENGINE=simulated DATABASE_URL=" in str(error.value)


def test_missing_system_library_comes_with_its_apt_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_has_library", lambda _name: False)
    with pytest.raises(BootstrapError, match="sudo apt install libnuma1"):
        bootstrap._check_machine("cpu")


def test_missing_wheel_is_named(tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    log.write_text("ERROR: No matching distribution found for torch==2.13.0+cpu\n")
    assert "no wheel of torch==2.13.0+cpu" in str(bootstrap._install_error("PyTorch", log))


def test_no_python_gives_the_apt_line(tmp_path: Path) -> None:
    script = tmp_path / "launcher" / "bootstrap.sh"
    script.parent.mkdir()
    script.write_text((bootstrap.REPOSITORY / "launcher" / "bootstrap.sh").read_text())
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("dirname", "cat"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    answer = subprocess.run(["/bin/sh", script], env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "sudo apt install python3 python3-venv" in answer.stderr


def test_named_python_that_is_none_is_refused() -> None:
    script = bootstrap.REPOSITORY / "launcher" / "bootstrap.sh"
    environment = os.environ | {"PYTHON": "/bin/false"}
    answer = subprocess.run(["/bin/sh", script], env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "PYTHON=/bin/false is not a Python 3.11 or newer" in answer.stderr


def test_bootstrap_needs_nothing_but_the_standard_library() -> None:
    command = [sys.executable, "-I", "-S", str(bootstrap.REPOSITORY / "launcher" / "bootstrap.py")]
    answer = subprocess.run(command, env={"ENGINE": "none"}, capture_output=True, text=True, check=False)
    assert "ENGINE=none is not known" in answer.stderr


def command_of(clone: Path, cache: Path, says: str) -> Path:
    """A clone with a command line that says which clone it is of; its environment, `cache`, may be shared."""
    (clone / "cli").mkdir(parents=True)
    (clone / "cli" / "__init__.py").touch()
    (clone / "cli" / "__main__.py").touch()
    (clone / "cli" / "app.py").write_text(f"import sys\ndef main(): print({says!r}, sys.argv[1:])\n")
    if not (cache / "bin").exists():
        (cache / "bin").mkdir(parents=True)
        (cache / "bin" / "python").symlink_to(sys.executable)
    (clone / ".venv").symlink_to(cache)
    return clone / ".venv" / "bin" / "headrace"


def said(command: Path | str, *arguments: str, cwd: Path | None = None, path: str = "") -> str:
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    answer = subprocess.run([command, *arguments], capture_output=True, text=True, check=True, cwd=cwd, env=environment)
    return answer.stdout.strip()


def test_command_line_is_that_of_the_clone_it_is_called_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "a cache" / "venv"
    one = command_of(tmp_path / "one", cache, "one")
    two = command_of(tmp_path / "two clones", cache, "two")
    monkeypatch.setattr(bootstrap, "REPOSITORY", tmp_path / "two clones")
    bootstrap._write_command(cache)
    assert said(one, "a b") == "one ['a b']"
    assert said(two) == "two []"
    assert said(".venv/bin/headrace", cwd=tmp_path / "one") == "one []"
    assert said("headrace", path=str(one.parent)) == "one []"
    link = tmp_path / "bin" / "headrace"
    link.parent.mkdir()
    link.symlink_to(one)
    assert said(link) == "one []"
    # An activated environment has its own folder on the path.
    assert said("headrace", path=str(cache / "bin")) == "two []"


def test_command_line_of_a_clone_that_is_gone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_of(tmp_path / "clone", tmp_path / "cache", "x")
    monkeypatch.setattr(bootstrap, "REPOSITORY", tmp_path / "clone")
    bootstrap._write_command(tmp_path / "cache")
    (tmp_path / "clone" / "cli" / "__main__.py").unlink()
    answer = subprocess.run([command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert answer.returncode == 1
    assert "was moved or deleted" in answer.stderr


def test_command_line_comes_with_the_environment(clone: Path) -> None:
    python = bootstrap.environment("simulated", dev=False)
    assert os.access(python.parent / "headrace", os.X_OK)
    (python.parent / "headrace").unlink()
    bootstrap.environment("simulated", dev=False)
    assert os.access(clone / ".venv" / "bin" / "headrace", os.X_OK)
