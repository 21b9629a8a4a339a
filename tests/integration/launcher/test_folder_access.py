"""Access control lists of folders that several launchers change."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import folder_access

_GRANT = """
import sys
from pathlib import Path
from launcher import folder_access

print("ready", flush=True)
sys.stdin.readline()
for gid in map(int, sys.argv[2:]):
    folder_access.grant(Path(sys.argv[1]), gid)
"""


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    if not folder_access.grant(tmp_path, 60800):
        pytest.skip("the file system has no access control lists")
    groups = [[str(gid) for gid in range(start, start + 60)] for start in range(60800, 61040, 60)]
    changes = [
        subprocess.Popen(
            [sys.executable, "-c", _GRANT, str(tmp_path), *gids],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for gids in groups
    ]
    for change in changes:
        assert change.stdout is not None
        assert change.stdout.readline() == "ready\n"
    for change in changes:
        assert change.stdin
        change.stdin.write("start\n")
        change.stdin.flush()
    for change in changes:
        change.communicate()
    assert [change.returncode for change in changes] == [0] * len(changes)
    entries = folder_access._read(tmp_path)
    assert entries is not None
    assert {str(gid) for _, gid in entries} >= {gid for gids in groups for gid in gids}
    for gid in range(60800, 61040):
        folder_access.revoke(tmp_path, gid)
    assert "system.posix_acl_access" not in os.listxattr(tmp_path)


def test_a_folder_that_was_opened_to_all_is_closed_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    folder_access.open_to_all(tmp_path)
    assert folder_access.is_open(tmp_path)
    folder_access.close_to_others(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750
