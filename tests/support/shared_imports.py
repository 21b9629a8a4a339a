"""Imports of test modules, divided among the processes of a parallel run.

pytest rewrites the assertions of each module at its first import and stores the result beside it. In a new checkout,
processes that collect in the same order would all rewrite every module, at the same time. Here each process starts at
another position and finds most modules rewritten.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

import pytest


def import_in_turn(config: pytest.Config, tests: Path) -> None:
    """Import all test modules, if this is one of several processes that collect them all."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is None or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    names = [_module(path, tests.parent) for path in sorted(tests.rglob("test_*.py"))]
    number, count = int(workerinput["workerid"].removeprefix("gw")), int(workerinput["workercount"])
    start = len(names) * (number % count) // count
    for name in names[start:] + names[:start]:
        # The collection imports a module that fails, or that skips itself, again and reports it.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(name)


def _module(path: Path, root: Path) -> str:
    return str(path.relative_to(root).with_suffix("")).replace(os.sep, ".")
