"""Runs the one-time commands of the launcher."""

from launcher.children import Child
from launcher.errors import LaunchError
from launcher.progress import Phase
from launcher.stopping import Stopping


def run_command(child: Child, phase: Phase, activity: str, stopping: Stopping) -> None:
    """Run a command to completion; raises `LaunchError` with its output if it fails."""
    child.start()
    try:
        while (code := child.ended()) is None:
            phase.note(activity)
            stopping.sleep(0.05)
    finally:
        child.kill()
    if code != 0:
        raise LaunchError(f"{' '.join(child.command[1:])} failed:\n{child.last_lines(30)}")
