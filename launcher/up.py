"""Starts, supervises and stops the whole stack: `make up` after the packages are installed."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from launcher import parts, readiness
from launcher.banner import banner
from launcher.children import Child, Supervisor, end_leftovers, how_it_ended
from launcher.commands import run_command
from launcher.embedded import Postgres, Server, Valkey, start_postgres, start_valkey
from launcher.errors import LaunchError, StopRequested
from launcher.home import only_launcher, write_environment
from launcher.parts import Parts
from launcher.ports import check_free
from launcher.progress import Progress
from launcher.reload import reload
from launcher.settings import Settings, load_settings
from launcher.stopping import Stopping
from shared.config.models.loader import Registry

STOP_TIMEOUT_S = 20.0
# During the start there are no jobs to finish.
STOP_TIMEOUT_STARTING_S = 5.0
LEFTOVER_TIMEOUT_S = 10.0

S = TypeVar("S", bound=Server)


def main(make_parts: Callable[[Settings, Registry, str, str], Parts] = Parts) -> int:
    """Run until a stop is requested. Returns the exit code."""
    progress, stopping = Progress(), Stopping()
    stopping.install_handlers()
    try:
        settings = load_settings()
        with only_launcher(settings.home):
            registry = parts.load_models(settings.models)
            parts.check_engine(settings, registry)
            run(settings, registry, make_parts, progress, stopping)
    except LaunchError as error:
        progress.say(f"\n{error}")
        return error.exit_code
    except StopRequested:
        pass
    progress.say("Headrace has stopped.")
    return 0


def run(
    settings: Settings,
    registry: Registry,
    make_parts: Callable[[Settings, Registry, str, str], Parts],
    progress: Progress,
    stopping: Stopping,
) -> None:
    """Start everything in order and supervise it. On exit, stop everything in reverse order."""
    progress.say("Starting Headrace")
    not_before = clean_up_last_run(settings, progress)
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []
        database_url = settings.database_url or _started(postgres(settings, progress), stack, servers).url
        redis_url = settings.redis_url or _started(valkey(settings, progress), stack, servers).url
        components = make_parts(settings, registry, database_url, redis_url)
        key, password = parts.api_key(settings), parts.flower_password(settings)
        # Earlier versions of `headrace` kept an operator's key of their own there.
        (settings.home / "operator_key").unlink(missing_ok=True)
        prepare(components, key, progress, stopping)
        supervisor = stack.enter_context(supervised(settings, progress, stopping, servers))
        stack.callback((settings.home / "env").unlink, missing_ok=True)
        # With the address for `headrace`, which finds the running stack by this file.
        write_environment(settings.home / "env", components.environment | {"HEADRACE_URL": settings.api_url})
        for child in (components.api(), *components.workers(), components.flower(password)):
            supervisor.start(child)
        wait_until_ready(settings, registry, supervisor, progress, stopping, not_before)
        supervisor.stop_timeout_s = max(STOP_TIMEOUT_S, settings.drain_s + 10.0)
        console = console_address(components, key, progress, stopping) if settings.console else None
        progress.say(banner(settings, list(registry.models), key, password, _servers(settings), console))
        while True:
            supervisor.restart_dead()
            if stopping.take_reload():
                components = reload(components, make_parts, supervisor, progress, stopping)
            stopping.sleep()


def clean_up_last_run(settings: Settings, progress: Progress) -> float:
    """End leftover processes of the last run, and check that the ports are free.

    Returns the monotonic time until which leases of killed workers may still be valid, so that those workers look
    alive; 0 after a clean stop.
    """
    forced = (settings.home / "pids").exists()
    if count := end_leftovers(settings.home / "pids", LEFTOVER_TIMEOUT_S):
        progress.say(f"  The last run was killed; ended {count} leftover processes.")
    check_free(settings.host, settings.port, "HEADRACE_HOST", "HEADRACE_PORT")
    check_free(settings.flower_address, settings.flower_port, "HEADRACE_FLOWER_ADDRESS", "HEADRACE_FLOWER_PORT")
    return time.monotonic() + settings.lease_s if forced else 0.0


def postgres(settings: Settings, progress: Progress) -> Postgres:
    """Start the embedded PostgreSQL."""
    with progress.phase("PostgreSQL"):
        return start_postgres(settings.home / "postgres", log=settings.logs / "postgres.log")


def valkey(settings: Settings, progress: Progress) -> Valkey:
    """Start the embedded Valkey, which only this user can connect to."""
    with progress.phase("Valkey"):
        return start_valkey(settings.home / "valkey", log=settings.logs / "valkey.log", private=True)


def _started(server: S, stack: contextlib.ExitStack, servers: list[Server]) -> S:
    stack.callback(server.stop)
    servers.append(server)
    return server


@contextlib.contextmanager
def supervised(
    settings: Settings, progress: Progress, stopping: Stopping, servers: Sequence[Server]
) -> Iterator[Supervisor]:
    """Yield a supervisor of children and of the servers; on exit, stop the children."""
    supervisor = Supervisor(progress.say, settings.home / "pids", STOP_TIMEOUT_STARTING_S, servers)
    try:
        yield supervisor
    finally:
        progress.say("\nStopping (Ctrl-C again to kill)" if stopping.requests else "\nStopping")
        supervisor.stop(stopping)


def prepare(components: Parts, key: str, progress: Progress, stopping: Stopping) -> None:
    """Run the one-time steps: convert bundled models, migrate the database, create the API key."""
    if names := parts.bundled_models(components.registry):
        with progress.phase("models") as phase:
            run_command(components.prepare_models(names), phase, "converting " + ", ".join(names), stopping)
    with progress.phase("tables", "up to date") as phase:
        run_command(components.migrate(), phase, "migrating", stopping)
        run_command(components.ensure_key(key), phase, "creating the API key", stopping)


def wait_until_ready(
    settings: Settings,
    registry: Registry,
    supervisor: Supervisor,
    progress: Progress,
    stopping: Stopping,
    not_before: float,
) -> None:
    """Wait for the API, every model's worker and Flower; raises `LaunchError` if a child dies."""
    name = "engine" if any(model.loads_model for model in registry.models.values()) else "services"
    with progress.phase(name) as phase:
        if name == "engine":
            progress.say(f"  {name:<12} loading {', '.join(registry.models)}; takes 20 s to several minutes")
        while True:
            state = readiness.ask(settings.api_url)
            flower = readiness.listens(settings.flower_address, settings.flower_port)
            if state.ready and flower and time.monotonic() >= not_before:
                return
            if dead := supervisor.first_dead():
                raise LaunchError(_died_while_starting(dead))
            if phase.seconds > settings.start_timeout_s:
                raise LaunchError(
                    f"Not ready after {settings.start_timeout_s} s (HEADRACE_START_TIMEOUT_S): "
                    f"waiting for {state.waiting_for or 'Flower'}. Logs: {settings.logs}"
                )
            phase.note(f"waiting for {state.waiting_for or ('Flower' if not flower else 'old leases to expire')}")
            stopping.sleep(0.2)


def console_address(components: Parts, key: str, progress: Progress, stopping: Stopping) -> str:
    """The address of the console: a one-time link, or if there is none, that of the sign-in page."""
    child = components.console_link(key)
    try:
        with progress.phase("console", "link created") as phase:
            run_command(child, phase, "creating a sign-in link", stopping)
    except LaunchError as error:
        progress.say(f"  {'console':<12} no sign-in link: {error}")
    found = re.search(r"^https?://\S+$", child.last_lines(10), re.MULTILINE)
    return f"{found[0]}   (works once, for 10 minutes)" if found else f"{components.settings.api_url}/console"


def _died_while_starting(child: Child) -> str:
    code = child.ended()
    assert code is not None
    return f"{child.name} exited during startup ({how_it_ended(code)}). The end of {child.log}:\n{child.last_lines(30)}"


def _servers(settings: Settings) -> str:
    external = [name for name, url in _external_urls(settings) if url]
    return f"embedded, state in {settings.home}" if not external else f"external: {' and '.join(external)}"


def _external_urls(settings: Settings) -> tuple[tuple[str, str | None], ...]:
    return ("DATABASE_URL", settings.database_url), ("REDIS_URL", settings.redis_url)
