"""The scheduler of parallel runs: tests of a file share a process, and so do the tests of a group.

Groups are tests of several files that share something expensive: one vLLM engine. pytest-xdist's own groups
(`--dist loadgroup`) would put each test without a group into a process by itself. The worker processes collect the
tests and write the groups to a file for the controlling process.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

FILE = "groups_file"


class Parallel:
    """A plugin of the controlling process, which also configures the processes that it starts."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-tests-")
        self._file = Path(self._folder.name) / "groups.json"

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        node.workerinput[FILE] = str(self._file)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> Grouped | None:
        return Grouped(config, log, self._file) if config.getoption("dist") == "loadfile" else None

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()


def write_groups(config: pytest.Config, groups: Mapping[str, str]) -> None:
    """Write the groups by test id. All processes write the same."""
    if workerinput := getattr(config, "workerinput", None):
        file = Path(workerinput[FILE])
        part = file.with_name(workerinput["workerid"])
        part.write_text(json.dumps(groups))
        part.replace(file)


class Grouped(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist ships no types
    """Runs the tests of a file or of a group in one process, in the order of collection."""

    def __init__(self, config: pytest.Config, log: Producer, file: Path) -> None:
        super().__init__(config, log)
        self._file = file
        self._groups: dict[str, str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._groups is None:  # all processes have finished collection
            self._groups = json.loads(self._file.read_text())
        return self._groups.get(nodeid) or str(super()._split_scope(nodeid))
