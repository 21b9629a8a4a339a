"""Adds a worker to a running `make up`: `make worker MODEL=NAME`."""

import os
import sys

from launcher.errors import SettingError
from launcher.home import read_environment
from launcher.settings import REPOSITORY, load_settings


def main(models: list[str]) -> None:
    """Exec a worker with the running stack's environment."""
    try:
        home = load_settings().home
    except SettingError as error:
        sys.exit(str(error))
    try:
        environment = read_environment(home / "env")
    except FileNotFoundError:
        sys.exit(f"Headrace is not running in {home}. Start it first, in another terminal:  make up")
    if len(models) != 1:
        sys.exit("Name one model:  make worker MODEL=smollm2")
    os.chdir(REPOSITORY)
    os.execve(sys.executable, [sys.executable, "-m", "workers", *models], os.environ | environment)


if __name__ == "__main__":
    main(sys.argv[1:])
