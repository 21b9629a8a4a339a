"""`HEADRACE_HOME`: the folder with this installation's state."""

import contextlib
import fcntl
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from launcher.errors import LaunchError

_MAX_LOG_BYTES = 10_000_000


@contextlib.contextmanager
def only_launcher(home: Path) -> Iterator[None]:
    """Lock the folder for this process; raises `LaunchError` with the pid of the current holder."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        for private in ("logs", "files"):  # files contain prompts and outputs, logs may
            (home / private).mkdir(exist_ok=True)
            (home / private).chmod(0o700)
    except OSError as error:
        raise LaunchError(
            f"HEADRACE_HOME={home} cannot be used: {error.strerror}. Set it to another folder."
        ) from error
    file = home / "lock"
    descriptor = _lock(file)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip()
            os.close(descriptor)
            raise LaunchError(
                f"Headrace is already running in {file.parent} (process {holder or 'unknown'}).\n"
                "Stop it with Ctrl-C, or set HEADRACE_HOME, HEADRACE_PORT and HEADRACE_FLOWER_PORT to run a second one."
            ) from None
        except FileNotFoundError:  # removed by the previous holder on exit
            pass
        os.close(descriptor)


def kept_secret(file: Path, make: Callable[[], str]) -> str:
    """Return the secret in `file`. If there is none, create it, readable only by its owner."""
    with contextlib.suppress(FileNotFoundError):
        if text := file.read_text().strip():
            return text
    secret = make()
    write_private(file, f"{secret}\n")
    return secret


def write_private(file: Path, text: str) -> None:
    """Write a file atomically, readable only by its owner."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    new.replace(file)


def write_environment(file: Path, variables: Mapping[str, str]) -> None:
    """Write the variables that a process needs to join the running stack, in shell syntax."""
    lines = (f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    write_private(file, "".join(lines))


def read_environment(file: Path) -> dict[str, str]:
    """Return the variables of the running stack; raises FileNotFoundError if none is running."""
    words = shlex.split(file.read_text())
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def fresh_log(file: Path) -> Path:
    """Rotate the log to `NAME.log.1` if it is too long. Returns `file`."""
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > _MAX_LOG_BYTES:
            file.replace(file.with_name(f"{file.name}.1"))
    return file
