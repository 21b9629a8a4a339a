"""Reloads models.yaml while the stack runs: which processes are signalled, restarted, started and ended."""

import signal
import time
from collections.abc import Callable

from launcher import parts, readiness
from launcher.children import Child, Supervisor
from launcher.commands import run_command
from launcher.errors import LaunchError
from launcher.parts import Parts
from launcher.progress import Progress
from launcher.settings import Settings
from launcher.stopping import Stopping
from shared.config.models.loader import ModelSpec, Registry
from shared.config.models.reload import ModelChanges, needs_restart

# An API process that takes longer, or does not run, reads the file later.
API_TIMEOUT_S = 60.0


def reload(
    components: Parts,
    make_parts: Callable[[Settings, Registry, str, str], Parts],
    supervisor: Supervisor,
    progress: Progress,
    stopping: Stopping,
) -> Parts:
    """Read models.yaml again.

    The API reads it first: it must not accept jobs of a removed model once the model's workers end. Then workers are
    signalled, or restarted if they cannot apply their change, and those of new models are started. Workers of removed
    models end by themselves.

    Returns the components with the new models; the old ones if the file is invalid.
    """
    settings = components.settings
    try:
        registry = parts.load_models(settings.models)
        parts.check_engine(settings, registry)
        changed = make_parts(settings, registry, components.database_url, components.redis_url)
        if names := sorted({*parts.bundled_models(registry)} - {*parts.bundled_models(components.registry)}):
            with progress.phase("models") as phase:
                run_command(changed.prepare_models(names), phase, "converting " + ", ".join(names), stopping)
        _reload_api(changed, supervisor, progress, stopping)
    except LaunchError as error:
        progress.say(f"The models were not reloaded and stay as they are: {error}")
        return components
    progress.say(f"Models reloaded; {ModelChanges.between(components.registry.models, registry.models)}")
    wanted = {worker.name: worker for worker in changed.workers()}
    for child in list(supervisor.children):
        if child.model is not None:
            _reload_worker(child, wanted.pop(child.name, None), registry, supervisor, progress)
    for worker in wanted.values():
        supervisor.start(worker)
    return changed


def _reload_api(changed: Parts, supervisor: Supervisor, progress: Progress, stopping: Stopping) -> None:
    """Let the API read the file, and wait until it has; raises `LaunchError` if it cannot use it."""
    new, url = changed.api(), changed.settings.api_url
    before, signalled_at = readiness.loaded_models(url), time.time()
    for child in supervisor.children:
        if child.name == new.name:
            child.environment = new.environment
            child.send(signal.SIGHUP)
    deadline = time.monotonic() + API_TIMEOUT_S
    while time.monotonic() < deadline:
        loaded = readiness.loaded_models(url)
        if loaded is not None and loaded.at >= signalled_at:
            return
        if loaded is not None and before is not None and loaded.failures > before.failures:
            raise LaunchError(f"the API cannot use them. Log: {new.log}")
        supervisor.restart_dead()
        stopping.sleep()
    progress.say(f"The API has not read the models within {API_TIMEOUT_S:g} s. Log: {new.log}")


def _reload_worker(
    child: Child, wanted: Child | None, registry: Registry, supervisor: Supervisor, progress: Progress
) -> None:
    """Signal, restart or end a worker. `wanted`: how it would be started now; None if it would not."""
    old = child.model
    assert old is not None
    new = registry.models.get(old.name)
    if new is None or new.adapter is not None:
        supervisor.release(child)
        child.send(signal.SIGHUP)
    elif wanted is None:  # its model has fewer workers now
        supervisor.release(child)
        supervisor.restart(child)
    else:
        supervisor.retain(child)
        child.model, child.environment = new, wanted.environment
        if _needs_restart(old, new):
            progress.say(f"Restarting {child.name}, because the entry of its model has changed.")
            supervisor.restart(child)
        else:
            child.send(signal.SIGHUP)


def _needs_restart(old: ModelSpec, new: ModelSpec) -> bool:
    """Whether a worker cannot apply a change, or needs the key of another variable."""
    return needs_restart(old, new) or not {*new.secret_envs} <= {*old.secret_envs}
