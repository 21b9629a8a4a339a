"""The user that PostgreSQL runs as if root starts it: PostgreSQL refuses to run as root.

It is a user id of its own, without an entry in /etc/passwd, so no other process runs as the same user, and PostgreSQL's
files and socket are accessible to it and to root only. Folders on the way to them that other users cannot pass through
stay closed to all but its group, which has no other members, and only until PostgreSQL is stopped.
"""

import contextlib
import grp
import hashlib
import os
import pwd
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from launcher import folder_access
from launcher.errors import LaunchError
from launcher.linux import Account, users_of_processes

# Ids that neither distributions nor systemd assign to anyone; containers usually map them.
_IDS = range(60706, 61184)
# initdb, unlike the server, requires a user that has a name. This one exists on every Linux.
_NAMED_USER = "nobody"


@dataclass(frozen=True)
class DatabaseAccount:
    """PostgreSQL's own user and group, and the folders that the group may pass through while PostgreSQL runs."""

    account: Account
    data_dir: Path
    folders: tuple[Path, ...]
    # Keeps other launchers from choosing the same id, also while no process runs as this user.
    reservation: socket.socket

    @property
    def initdb_account(self) -> Account:
        """The user for initdb. Its group, which nobody else has, keeps other processes of that user out."""
        return Account(pwd.getpwnam(_NAMED_USER).pw_uid, self.account.gid)

    def open_folders(self) -> None:
        """Let the account's group pass through the folders; all users, if a file system has no access control lists."""
        for folder in self.folders:
            if not folder_access.grant(folder, self.account.gid):
                folder_access.open_to_all(folder, self.data_dir)

    def release(self) -> None:
        """Undo `open_folders`, and let other launchers choose the id."""
        for folder in self.folders:
            with contextlib.suppress(FileNotFoundError):
                folder_access.revoke(folder, self.account.gid)
                folder_access.close_to_others(folder, self.data_dir)
        self.reservation.close()

    def own_data(self) -> None:
        """Make the account the owner of the data folder, which may be an earlier release's."""
        former = self.data_dir.stat().st_uid
        if former == self.account.uid:
            return
        for folder, _, files in os.walk(self.data_dir):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                if os.lstat(path).st_uid == former:
                    os.lchown(path, self.account.uid, self.account.gid)


def database_account(data_dir: Path, used_folders: Iterable[Path]) -> DatabaseAccount | None:
    """Return the account for the database in `data_dir`, or None if this process is not root's.

    No other launcher chooses the same account until this one is released, or this process ends.

    Raises:
        LaunchError: No such user is available.
    """
    if os.geteuid() != 0:
        return None
    uid, reservation = _choose_id(data_dir)
    folders = {folder for used in (*used_folders, data_dir) for folder in used.parents}
    account = Account(uid, uid)
    return DatabaseAccount(account, data_dir, tuple(sorted(folders)), reservation)


def _choose_id(data_dir: Path) -> tuple[int, socket.socket]:
    """Reserve the owner of the data, or else an id derived from its path, that no one else uses."""
    start = int.from_bytes(hashlib.sha256(os.fsencode(data_dir)).digest()[:4])
    candidates = [_IDS[(start + step) % len(_IDS)] for step in range(len(_IDS))]
    with contextlib.suppress(FileNotFoundError):
        candidates.insert(0, data_dir.stat().st_uid)
    taken = users_of_processes()
    for candidate in candidates:
        if candidate not in _IDS or candidate in taken or not _is_mapped(candidate) or _has_name(candidate):
            continue
        if (reservation := _reserve(candidate)) is not None:
            return candidate, reservation
    raise LaunchError(
        "PostgreSQL refuses to run as root, and this container has no other user for it.\n"
        "Run `make up` as an ordinary user, or set DATABASE_URL to a PostgreSQL of your own."
    )


def _reserve(number: int) -> socket.socket | None:
    """Reserve an id until the socket is closed, also by the end of this process. None: another launcher has it."""
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        reservation.bind(f"\0headrace-postgres-{number}")  # a name that is in no folder
    except OSError:
        reservation.close()
        return None
    return reservation


def _has_name(number: int) -> bool:
    for lookup in (pwd.getpwuid, grp.getgrgid):
        with contextlib.suppress(KeyError):
            lookup(number)
            return True
    return False


def _is_mapped(number: int) -> bool:
    """Return whether the user namespace of this process has this user and group id."""
    return all(
        any(first <= number < first + count for first, count in _ranges(Path(f"/proc/self/{kind}_map")))
        for kind in ("uid", "gid")
    )


def _ranges(file: Path) -> list[tuple[int, int]]:
    try:
        words = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return [(0, 2**32)]
    return [(int(first), int(count)) for first, _, count in words]
