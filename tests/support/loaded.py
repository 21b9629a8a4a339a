"""Reports the packages that a process has loaded."""

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


def report_engine(answer: Connection, modules: Sequence[str]) -> None:
    """The same in a process that is set up like vLLM's engine process: by the main module of workers."""
    from workers.main import configure_engine_logging

    configure_engine_logging()
    report_loaded(answer, modules)
