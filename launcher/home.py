"""The folder that keeps this installation's state: `HEADRACE_HOME`."""

import contextlib
import fcntl
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from launcher.errors import LaunchError

_TOO_LONG = 10_000_000  # bytes of a log before a new one is begun


@contextlib.contextmanager
def only_launcher(home: Path) -> Iterator[None]:
    """Hold the folder for this process; raises `LaunchError` naming who has it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "logs").mkdir(mode=0o700, exist_ok=True)  # a log may hold a prompt
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
                f"Headrace is running already in {file.parent} (process {holder or 'unknown'}).\n"
                "Stop that one with Ctrl-C, or set HEADRACE_HOME, HEADRACE_PORT and HEADRACE_FLOWER_PORT for a second."
            ) from None
        except FileNotFoundError:  # the holder removed it at its end
            pass
        os.close(descriptor)


def kept_secret(file: Path, make: Callable[[], str]) -> str:
    """The secret in `file`; the first time it is made and written for the owner's eyes only."""
    with contextlib.suppress(FileNotFoundError):
        if text := file.read_text().strip():
            return text
    secret = make()
    write_private(file, f"{secret}\n")
    return secret


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)
    new.replace(file)


def write_environment(file: Path, variables: Mapping[str, str]) -> None:
    """What a process needs to join the running stack; a shell can read it too."""
    lines = (f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    write_private(file, "".join(lines))


def read_environment(file: Path) -> dict[str, str]:
    """The variables of a running stack; raises FileNotFoundError when none runs."""
    words = shlex.split(file.read_text())
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def fresh_log(file: Path) -> Path:
    """The log to go on with; a long one is put aside as `NAME.log.1` first."""
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > _TOO_LONG:
            file.replace(file.with_name(f"{file.name}.1"))
    return file
