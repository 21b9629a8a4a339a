"""Which packages a process has loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection


def report_loaded(answer: Connection, modules: Sequence[str]) -> None:
    """Import modules, then send the names of all top-level packages that this process has loaded."""
    for name in modules:
        importlib.import_module(name)
    answer.send(sorted({name.partition(".")[0] for name in sys.modules}))
