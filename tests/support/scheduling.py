"""How a parallel run divides the tests: by file, and those with vLLM last and alone.

An engine of vLLM's takes all cores, so nothing may run beside it. pytest-xdist's own schedulers know no such rule.
The processes collect; which of their tests run alone, they write to a file that the controlling process reads.
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
    """A plugin for the controlling process, and for each process that it starts."""

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
    """Say which tests run alone; all processes say the same."""
    if workerinput := getattr(config, "workerinput", None):
        file = Path(workerinput[LIST])
        part = file.with_name(workerinput["workerid"])
        part.write_text(json.dumps(alone))
        part.replace(file)


class AloneLast(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """A file's tests run in one process; the group `ALONE` runs when all other processes have ended."""

    def __init__(self, config: pytest.Config, log: Producer, alone: Path) -> None:
        super().__init__(config, log)
        self._file = alone
        self._alone: set[str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._alone is None:  # all have collected
            self._alone = set(json.loads(self._file.read_text()))
        return ALONE if nodeid in self._alone else str(super()._split_scope(nodeid))

    def _assign_work_unit(self, node: WorkerController) -> None:
        if next(iter(self.workqueue)) == ALONE:
            others = [other for other in self.nodes if other is not node]
            if not all(other.shutting_down for other in others):
                node.shutdown()  # when it has run what it has; another process runs the group
                return
            if others:
                return  # until the last of them has ended: `remove_node`
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        crashed: str | None = super().remove_node(node)
        if self.workqueue:
            for other in self.nodes:
                self._reschedule(other)
        return crashed
