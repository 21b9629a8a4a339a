"""Lets one group pass through folders, and takes that right back: POSIX access control lists, without a library.

A group that has an entry gets the entry's permissions only, even if all other users have more. So an entry that a
killed launcher has left, and that a `chmod` has made void, keeps its group out of a folder that is open to all.

The list of a file is its extended attribute `system.posix_acl_access`: a version, and entries of tag, permissions and
id, as in the kernel's `posix_acl_xattr.h`.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from launcher.home import write_private

_ATTRIBUTE = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_PASS = 0o1
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

# In a folder that is open to all for a while: the data folders for which it is, one in each line.
_OPENED = ".headrace-opened"

Entries = dict[tuple[int, int], int]


def grant(folder: Path, gid: int) -> bool:
    """Let a group pass through a folder, unless it can. Returns False if there are no access control lists."""
    entries = _read(folder)
    if entries is None:
        return False
    if _passes(entries, gid):
        return True
    with _exclusive(folder):
        entries = _read(folder)
        if entries is None:
            return False
        if (_MASK, _NO_ID) in entries:
            # The mask gets the permission too, which must not give it to other entries that the mask held back.
            mask = entries[_MASK, _NO_ID]
            entries = {key: perm if key[0] in (_USER_OBJ, _OTHER) else perm & mask for key, perm in entries.items()}
        else:
            entries[_MASK, _NO_ID] = entries[_GROUP_OBJ, _NO_ID]
        entries[_GROUP, gid] = entries.get((_GROUP, gid), 0) | _PASS
        entries[_MASK, _NO_ID] |= _PASS
        return _write(folder, entries)


def revoke(folder: Path, gid: int) -> None:
    """Remove the group from the folder's list. Without other entries, the folder gets its former mode back."""
    if (_GROUP, gid) not in (_read(folder) or ()):
        return  # without a lock, which any user can hold on a folder that was open to all
    with _exclusive(folder):
        entries = _read(folder)
        if entries is None or entries.pop((_GROUP, gid), None) is None:
            return
        if {tag for tag, _ in entries} <= {_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER}:
            entries.pop((_MASK, _NO_ID), None)
        _write(folder, entries)


def open_to_all(folder: Path, data_dir: Path) -> None:
    """Let every user pass through the folder, until it is closed for each data folder that it was opened for."""
    with _exclusive(folder):
        opened_for = _opened_for(folder)
        if not opened_for and folder.stat().st_mode & stat.S_IXOTH:
            return  # it is open anyway
        _note_opened_for(folder, opened_for | {_line(data_dir)})
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IXOTH)


def close_to_others(folder: Path, data_dir: Path) -> None:
    """Undo `open_to_all`."""
    if _line(data_dir) not in _opened_for(folder):
        return  # without a lock, as in `revoke`
    with _exclusive(folder):
        opened_for = _opened_for(folder) - {_line(data_dir)}
        _note_opened_for(folder, opened_for)
        if not opened_for:
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~stat.S_IXOTH)


def _line(data_dir: Path) -> str:
    return ascii(str(data_dir))


def _opened_for(folder: Path) -> set[str]:
    try:
        return set((folder / _OPENED).read_text().splitlines())
    except FileNotFoundError:
        return set()


def _note_opened_for(folder: Path, lines: set[str]) -> None:
    if lines:
        write_private(folder / _OPENED, "".join(f"{line}\n" for line in sorted(lines)))
    else:
        (folder / _OPENED).unlink(missing_ok=True)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other launchers, whose folders may have this parent too, from changing the folder's mode at the same time.

    A change reads the former value first, so one of two changes at the same time would be lost.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: two changes at once remain unlikely
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _passes(entries: Entries, gid: int) -> bool:
    """Return whether a group that does not own the folder can pass through it."""
    if (_GROUP, gid) in entries:
        return bool(entries[_GROUP, gid] & entries[_MASK, _NO_ID] & _PASS)
    return bool(entries[_OTHER, _NO_ID] & _PASS)


def _read(folder: Path) -> Entries | None:
    """Return the entries; those of the mode if there is no list, None if lists are not supported."""
    try:
        value = os.getxattr(folder, _ATTRIBUTE)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        if error.errno != errno.ENODATA:
            raise
        mode = stat.S_IMODE(folder.stat().st_mode)
        return {
            (_USER_OBJ, _NO_ID): mode >> 6 & 7,
            (_GROUP_OBJ, _NO_ID): mode >> 3 & 7,
            (_OTHER, _NO_ID): mode & 7,
        }
    return {(tag, owner): perm for tag, perm, owner in _ENTRY.iter_unpack(value[len(_VERSION) :])}


def _write(folder: Path, entries: Entries) -> bool:
    # The kernel requires this order: by tag, then by id.
    value = _VERSION + b"".join(_ENTRY.pack(tag, perm, owner) for (tag, owner), perm in sorted(entries.items()))
    try:
        os.setxattr(folder, _ATTRIBUTE, value)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True
