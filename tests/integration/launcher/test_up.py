"""`python -m launcher` as a process, with tiny commands for the parts and the real embedded servers."""

import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.home import read_environment
from launcher.linux import start_time
from tests.support.launcher import Launcher
from tests.support.stack import REPOSITORY, write_models
from tests.support.waiting import eventually_sync


def can_listen(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path / "home")
    yield launcher
    for process in launcher.running:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def assert_nothing_left(launcher: Launcher, pids: list[int]) -> None:
    assert [pid for pid in pids if start_time(pid) is not None] == []
    assert can_listen(launcher.port)
    assert can_listen(launcher.flower_port)
    for name in ("lock", "env", "pids"):
        assert not (launcher.home / name).exists()


def test_stops_when_its_terminal_is_closed(launcher: Launcher) -> None:
    ours, terminal = pty.openpty()
    process = launcher.start_and_wait(terminal=terminal)
    os.close(terminal)
    pids = launcher.pids()
    os.close(ours)
    assert process.wait(30) == 0, launcher.output
    assert_nothing_left(launcher, pids)


def test_reload(launcher: Launcher, tmp_path: Path) -> None:
    """SIGHUP starts workers of new models, and lets those of removed ones end. An invalid file changes nothing.

    A worker that cannot apply a change, or needs the key of another variable, is restarted. Workers change only after
    the API has.
    """

    def replace(*models: str | dict[str, object]) -> None:
        entries = [
            {"engine": "simulated", **({"name": model} if isinstance(model, str) else model)} for model in models
        ]
        os.replace(write_models(tmp_path / "new", entries), models_file)

    def logs() -> dict[str, str]:
        return {file.name[7]: file.read_text() for file in (launcher.home / "logs").glob("worker-*")}

    models_file = tmp_path / "models.yaml"
    replace("a", "b")
    process = launcher.start_and_wait(HEADRACE_MODELS=str(models_file), OTHER_KEY="sk-other")
    eventually_sync(lambda: logs() == dict.fromkeys("ab", "consuming\n"), "both workers run")
    before = launcher.pids()
    replace("b", "c")
    environment = {**os.environ, "HEADRACE_HOME": str(launcher.home)}
    subprocess.run(["make", "reload"], cwd=REPOSITORY, env=environment, check=True)
    eventually_sync(lambda: "worker-a-1 has ended (exit code 0)." in launcher.output, "the removed model's worker")
    assert "Models reloaded; added: c; removed: a" in launcher.output
    assert logs() == {"a": "consuming\nreloading\n", "b": "consuming\nreloading\n", "c": logs()["c"]}
    assert len(set(before) & set(launcher.pids())) == len(before) - 1, "all others run on"

    eventually_sync(lambda: logs()["c"] == "consuming\n", "the new model's worker")
    openai = {"name": "b", "engine": "openai", "model": "theirs"}
    for options in ({"base_url": "http://localhost:9"}, {"base_url": "http://localhost:9", "api_key_env": "OTHER_KEY"}):
        pids = launcher.pids()
        replace({**openai, "options": options}, "c")
        process.send_signal(signal.SIGHUP)
        eventually_sync(lambda: logs()["b"].endswith("reloading\nconsuming\n"), "a new process")
        eventually_sync(lambda: logs()["c"].endswith("reloading\n"), "the other worker applies its entry")
        assert len(set(pids) & set(launcher.pids())) == len(pids) - 1
        replace({**openai, "options": {**options, "max_retries": 7}}, "c")
        process.send_signal(signal.SIGHUP)
        eventually_sync(lambda: logs()["b"].endswith("reloading\n"), "it applies this")
    eventually_sync(lambda: logs()["c"].count("reloading\n") == 4, "the other worker applies all of it")
    assert launcher.output.count("Restarting worker-b-1, because the entry of its model has changed.") == 2
    assert "died" not in launcher.output

    pids, logged = launcher.pids(), logs()
    replace("b", "c", "refused")
    process.send_signal(signal.SIGHUP)
    eventually_sync(lambda: "stay as they are: the API cannot use them" in launcher.output, "the API's refusal")
    models_file.write_text("models: [{name: b, engine: simulated, slotz: 1}]")
    process.send_signal(signal.SIGHUP)
    eventually_sync(lambda: "models[0].slotz: unknown field" in launcher.output, "the reason")
    assert "were not reloaded" in launcher.output
    assert (launcher.pids(), logs()) == (pids, logged)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stops_clean(launcher: Launcher, sig: signal.Signals) -> None:
    process = launcher.start_and_wait()
    pids = launcher.pids()
    assert len(pids) == 5
    process.send_signal(sig)
    assert process.wait(30) == 0, launcher.output
    assert "Headrace has stopped." in launcher.output
    assert_nothing_left(launcher, pids)


def test_banner_names_everything(launcher: Launcher) -> None:
    launcher.start_and_wait()
    key = (launcher.home / "api_key").read_text().strip()
    for text in (
        f"http://127.0.0.1:{launcher.port}/console/sign-in?token=stub   (works once, for 10 minutes)",
        f"http://127.0.0.1:{launcher.port}/docs",
        f"http://127.0.0.1:{launcher.flower_port}",
        f"Bearer {key}",
        "curl -N",
        "make worker MODEL=sim",
        str(launcher.home / "logs"),
    ):
        assert text in launcher.output
    assert launcher.output.index("  Console ") < launcher.output.index("  API ")
    assert "REDIS_URL" in read_environment(launcher.home / "env")


def test_the_banner_names_no_console_that_is_off(launcher: Launcher) -> None:
    launcher.start_and_wait(HEADRACE_CONSOLE="off")
    assert "  Console " not in launcher.output
    assert "/console" not in launcher.output


def test_killed_worker_comes_back(launcher: Launcher) -> None:
    launcher.start_and_wait()
    before = launcher.pids()
    os.kill(before[1], signal.SIGKILL)
    eventually_sync(lambda: "worker-sim-1 restarted." in launcher.output, "the worker's new start")
    assert launcher.pids()[1] != before[1]
    assert "worker-sim-1 died (SIGKILL)" in launcher.output


def test_second_launcher_is_refused_and_does_no_harm(launcher: Launcher) -> None:
    first = launcher.start_and_wait()
    second = launcher.start()
    assert second.wait(30) == 1
    assert f"Headrace is already running in {launcher.home} (process {first.pid})" in launcher.output
    assert first.poll() is None
    assert len(launcher.pids()) == 5


def test_start_after_kill_9(launcher: Launcher) -> None:
    process = launcher.start_and_wait()
    pids = launcher.pids()
    process.kill()
    process.wait()
    second = launcher.start_and_wait()
    assert [pid for pid in pids if start_time(pid) is not None] == []
    pids = launcher.pids()
    second.terminate()
    assert second.wait(30) == 0
    assert_nothing_left(launcher, pids)


def test_part_that_dies_while_starting_ends_the_start(launcher: Launcher) -> None:
    process = launcher.start(STUB_API_FAILS="yes")
    assert process.wait(60) == 1
    assert re.search(r"api exited during startup \(exit code 1\).*\n.*no table named jobs", launcher.output)
    assert not (launcher.home / "lock").exists()
    assert not (launcher.home / "postgres" / "postmaster.pid").exists()


def test_port_in_use_is_said_before_anything_starts(launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", launcher.port)):
        assert launcher.start().wait(30) == 2
    assert f"port {launcher.port} (HEADRACE_PORT) is in use; set HEADRACE_PORT to another" in launcher.output
    assert not (launcher.home / "postgres").exists()


def test_wrong_models_file_ends_the_start_with_its_message(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("models:\n  - {name: sim, engine: simulated, slotz: 1}\n")
    assert launcher.start(HEADRACE_MODELS=str(tmp_path / "m.yaml")).wait(30) == 2
    assert "slotz" in launcher.output
    assert "Traceback" not in launcher.output


def test_stop_while_starting(launcher: Launcher) -> None:
    process = launcher.start()
    eventually_sync(lambda: "Starting Headrace" in launcher.output, "the first line")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, launcher.output
    assert not (launcher.home / "lock").exists()
    assert not (launcher.home / "postgres" / "postmaster.pid").exists()
