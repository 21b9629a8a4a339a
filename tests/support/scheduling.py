"""The scheduler of parallel runs: tests of a file share a process; tests that use vLLM run last, with no others.

A vLLM engine uses all cores, so no other test may run at the same time. pytest-xdist's schedulers have no such rule.
The worker processes collect the tests and write the ids of those that run alone to a file for the controlling process.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

ALONE = "alone"
LIST = "alone_list"


class Parallel:
    """A plugin of the controlling process, which also configures the processes that it starts."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-tests-")
        self._list = Path(self._folder.name) / "alone.json"

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        node.workerinput[LIST] = str(self._list)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> AloneLast | None:
        return AloneLast(config, log, self._list) if config.getoption("dist") == "loadfile" else None

    def pytest_unconfigure(self) -> None:
        self._folder.cleanup()


def write_list(config: pytest.Config, alone: list[str]) -> None:
    """Write the ids of the tests that run alone. All processes write the same list."""
    if workerinput := getattr(config, "workerinput", None):
        file = Path(workerinput[LIST])
        part = file.with_name(workerinput["workerid"])
        part.write_text(json.dumps(alone))
        part.replace(file)


class AloneLast(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist ships no types
    """Runs the tests of a file in one process, and the group `ALONE` after all other processes have exited."""

    def __init__(self, config: pytest.Config, log: Producer, alone: Path) -> None:
        super().__init__(config, log)
        self._file = alone
        self._alone: set[str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._alone is None:  # all processes have finished collection
            self._alone = set(json.loads(self._file.read_text()))
        return ALONE if nodeid in self._alone else str(super()._split_scope(nodeid))

    def _assign_work_unit(self, node: WorkerController) -> None:
        if next(iter(self.workqueue)) == ALONE:
            others = [other for other in self.nodes if other is not node]
            if not all(other.shutting_down for other in others):
                node.shutdown()  # after its pending tests; another process runs the group
                return
            if others:
                return  # `remove_node` continues when the last of them has exited
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        crashed: str | None = super().remove_node(node)
        if self.workqueue:
            for other in self.nodes:
                self._reschedule(other)
        return crashed
