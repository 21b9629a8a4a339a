"""What the servers do that processes are forked from, after they have imported their modules."""

from __future__ import annotations

import gc
import signal

from launcher.linux import die_with_parent

# Makes the kernel kill a forked process when the fork server exits. Created here because it stores the server's pid.
die = die_with_parent(signal.SIGKILL)


def freeze() -> None:
    """Exempt the modules from garbage collection.

    Otherwise each forked process traverses them in its first collections, and copies their pages to do so.
    """
    gc.collect()
    gc.freeze()
