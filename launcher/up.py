"""Start everything, keep it alive, stop everything: what `make up` does once the packages are there."""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator

from launcher import embedded, parts, readiness
from launcher.banner import banner
from launcher.children import Child, Supervisor, end_leftovers, how_it_ended
from launcher.errors import LaunchError, SettingError, StopRequested
from launcher.home import fresh_log, only_launcher, write_environment
from launcher.parts import Parts
from launcher.ports import check_free
from launcher.progress import Phase, Progress
from launcher.settings import Settings, load_settings
from launcher.stopping import Stopping
from shared.config.models.loader import Registry

STOP_PATIENCE_S = 20.0
# While starting there is no work to finish.
STOP_PATIENCE_STARTING_S = 5.0
LEFTOVER_PATIENCE_S = 10.0


def main(make_parts: Callable[[Settings, Registry, str, str], Parts] = Parts) -> int:
    """Run until asked to stop; returns the exit code."""
    progress, stopping = Progress(), Stopping()
    stopping.listen()
    try:
        settings = load_settings()
        with only_launcher(settings.home):
            registry = parts.load_models(settings.models)
            check_engine(settings, registry)
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
    """The steps in order; whatever ends them, all that was started is stopped, in reverse."""
    progress.say("Starting Headrace")
    not_before = clear_the_way(settings, progress)
    with contextlib.ExitStack() as stack:
        database_url = stack.enter_context(database(settings, progress))
        redis_url = stack.enter_context(redis(settings, progress))
        these = make_parts(settings, registry, database_url, redis_url)
        key, password = parts.api_key(settings), parts.flower_password(settings)
        prepare(these, key, progress, stopping)
        supervisor = stack.enter_context(supervised(settings, progress, stopping))
        stack.callback((settings.home / "env").unlink, missing_ok=True)
        write_environment(settings.home / "env", these.environment)
        for child in (these.api(), *these.workers(), these.flower(password)):
            supervisor.start(child)
        wait_until_ready(settings, registry, supervisor, progress, stopping, not_before)
        supervisor.patience_s = max(STOP_PATIENCE_S, settings.drain_s + 10.0)
        progress.say(banner(settings, list(registry.models), key, password, _servers(settings)))
        while True:
            supervisor.tend()
            stopping.pause()


def check_engine(settings: Settings, registry: Registry) -> None:
    """Say at once when a model needs an engine that this environment does not have."""
    for name, model in registry.models.items():
        if model.package is not None and importlib.util.find_spec(model.package) is None:
            raise SettingError(
                f"{settings.models}: the engine of {name} needs the package {model.package!r}, which"
                f" ENGINE={settings.engine} does not install.\n"
                "Set ENGINE=cpu or ENGINE=gpu, or HEADRACE_MODELS to a file without such models."
            )
        if model.secret_env is not None and not parts.secret_of(model):
            raise SettingError(f"{model.secret_env} is not set; {settings.models} names it as the key of {name}.")


def clear_the_way(settings: Settings, progress: Progress) -> float:
    """See that nothing of the last run is left and that the ports are free.

    Returns the time before which a worker that seems alive may be one of a last run that ended by force: its lease
    has not run out yet.
    """
    forced = (settings.home / "pids").exists()
    if count := end_leftovers(settings.home / "pids", LEFTOVER_PATIENCE_S):
        progress.say(f"  The last run was killed; ended {count} of its processes.")
    check_free(settings.host, settings.port, "HEADRACE_HOST", "HEADRACE_PORT")
    check_free(settings.flower_address, settings.flower_port, "HEADRACE_FLOWER_ADDRESS", "HEADRACE_FLOWER_PORT")
    return time.monotonic() + settings.lease_s if forced else 0.0


@contextlib.contextmanager
def database(settings: Settings, progress: Progress) -> Iterator[str]:
    """The address of the database: the embedded PostgreSQL, unless another is given."""
    if settings.database_url:
        yield settings.database_url
        return
    with progress.phase("PostgreSQL"):
        server = embedded.start_postgres(settings.home / "postgres", log=fresh_log(settings.logs / "postgres.log"))
    try:
        yield server.url
    finally:
        server.stop()


@contextlib.contextmanager
def redis(settings: Settings, progress: Progress) -> Iterator[str]:
    """The address of Redis: the embedded Valkey, unless another is given."""
    if settings.redis_url:
        yield settings.redis_url
        return
    with progress.phase("Valkey"):
        server = embedded.start_valkey(settings.home / "valkey", log=fresh_log(settings.logs / "valkey.log"))
    try:
        yield server.url
    finally:
        server.stop()


@contextlib.contextmanager
def supervised(settings: Settings, progress: Progress, stopping: Stopping) -> Iterator[Supervisor]:
    """A supervisor whose children are all gone afterwards."""
    supervisor = Supervisor(progress.say, settings.home / "pids", STOP_PATIENCE_STARTING_S)
    try:
        yield supervisor
    finally:
        progress.say("\nStopping (Ctrl-C again: at once)" if stopping.requests else "\nStopping")
        supervisor.stop(stopping)


def prepare(these: Parts, key: str, progress: Progress, stopping: Stopping) -> None:
    """What is done once before anything serves: models, tables, the key."""
    if names := parts.bundled_models(these.registry):
        with progress.phase("models") as phase:
            run_to_end(these.prepare_models(names), phase, "converting " + ", ".join(names), stopping)
    with progress.phase("tables", "up to date") as phase:
        run_to_end(these.migrate(), phase, "migrating", stopping)
        run_to_end(these.ensure_key(key), phase, "the API key", stopping)


def run_to_end(child: Child, phase: Phase, doing: str, stopping: Stopping) -> None:
    """Run a command that ends; raises `LaunchError` with what it said when it fails."""
    child.start()
    try:
        while (code := child.ended()) is None:
            phase.note(doing)
            stopping.pause(0.05)
    finally:
        child.kill()
    if code != 0:
        raise LaunchError(f"{' '.join(child.command[1:])} failed:\n{child.last_lines(30)}")


def wait_until_ready(
    settings: Settings,
    registry: Registry,
    supervisor: Supervisor,
    progress: Progress,
    stopping: Stopping,
    not_before: float,
) -> None:
    """Wait for the API, every model's worker and Flower; a child that dies meanwhile ends the start."""
    what = "engine" if any(model.loads_model for model in registry.models.values()) else "services"
    with progress.phase(what) as phase:
        if what == "engine":
            progress.say(f"  {what:<12} loading {', '.join(registry.models)}; 20 s to some minutes")
        while True:
            state = readiness.ask(settings.api_url)
            flower = readiness.listens(settings.flower_address, settings.flower_port)
            if state.ready and flower and time.monotonic() >= not_before:
                return
            if dead := supervisor.first_dead():
                raise LaunchError(_obituary(dead))
            if phase.seconds > settings.start_timeout_s:
                raise LaunchError(
                    f"Not ready after {settings.start_timeout_s} s (HEADRACE_START_TIMEOUT_S): "
                    f"waiting for {state.waiting_for or 'Flower'}. Logs: {settings.logs}"
                )
            phase.note(f"waiting for {state.waiting_for or ('Flower' if not flower else 'the last run to be over')}")
            stopping.pause(0.2)


def _obituary(child: Child) -> str:
    code = child.ended()
    assert code is not None
    return f"{child.name} ended while starting ({how_it_ended(code)}). The end of {child.log}:\n{child.last_lines(30)}"


def _servers(settings: Settings) -> str:
    yours = [name for name, url in _given(settings) if url]
    return f"embedded, state in {settings.home}" if not yours else f"yours by {' and '.join(yours)}"


def _given(settings: Settings) -> tuple[tuple[str, str | None], ...]:
    return ("DATABASE_URL", settings.database_url), ("REDIS_URL", settings.redis_url)
