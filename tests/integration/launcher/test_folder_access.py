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
    first, second, third = (tmp_path / name for name in ("first\n", "s\udcff", "third"))
    for data_dir in (first, second, second):  # the second launcher was killed, and starts again
        folder_access.open_to_all(tmp_path, data_dir)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o751
    for data_dir in (second, second, third):
        folder_access.close_to_others(tmp_path, data_dir)
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o751, "the first still needs it"
    folder_access.close_to_others(tmp_path, first)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_open_anyway_stays_open(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder_access.open_to_all(tmp_path, tmp_path / "data")
    folder_access.close_to_others(tmp_path, tmp_path / "data")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert folder_access.grant(tmp_path, 60800) in (True, False)
    assert "system.posix_acl_access" not in os.listxattr(tmp_path), "it needs no entry"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process in another group")
def test_a_void_entry_of_a_killed_launcher_is_renewed(tmp_path: Path) -> None:
    """A `chmod` sets the list's mask, which makes entries void. The next grant to another group keeps them so."""
    if not folder_access.grant(tmp_path, 60800):
        pytest.skip("the file system has no access control lists")
    (tmp_path / "inside").mkdir()
    tmp_path.chmod(0o700)
    assert folder_access.grant(tmp_path, 60801)
    tmp_path.chmod(stat.S_IMODE(tmp_path.stat().st_mode) | stat.S_IXOTH)
    assert (passes(tmp_path, 60800), passes(tmp_path, 60801), passes(tmp_path, 60802)) == (False, True, True)
    for gid in (60800, 60801, 60802):
        assert folder_access.grant(tmp_path, gid)
        assert passes(tmp_path, gid)


def passes(folder: Path, gid: int) -> bool:
    """Whether a process of this group, and of a user who owns nothing, can pass through the folder."""
    code = "import os, sys; os.chdir(sys.argv[1]); os.setgid(int(sys.argv[2])); os.setuid(60799); os.stat('inside')"
    command = [sys.executable, "-c", code, str(folder), str(gid)]
    return subprocess.run(command, capture_output=True, check=False, extra_groups=[]).returncode == 0
