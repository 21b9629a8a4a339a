"""How a parallel run divides the tests: by file, and those with a real engine last and alone.

An engine of vLLM's takes all cores, so nothing may run beside it. pytest-xdist's own schedulers know no such rule.
"""

from __future__ import annotations

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController

# The group (`pytest.mark.xdist_group`) of tests that run alone. The tests are collected in an order that ends with it.
ALONE = "alone"


class AloneLast(LoadGroupScheduling):
    """A file's tests run in one process; the group `ALONE` runs when all other processes have ended."""

    def _split_scope(self, nodeid: str) -> str:
        group = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if group == nodeid else group

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
        crashed = super().remove_node(node)
        if self.workqueue:
            for other in self.nodes:
                self._reschedule(other)
        return crashed
