"""A child process that is forked, like the processes of stacks."""

from __future__ import annotations

import sys
import time
from typing import Any

from launcher.children import Child
from launcher.home import fresh_log
from tests.support.forked import Forked


class ForkedChild(Child):
    """Runs a Python module in the repository, without importing its modules again. It has no children of its own."""

    def start(self) -> None:
        program, option, *module = self.command
        assert (program, option) == (sys.executable, "-m"), self.command
        log = fresh_log(self.log)
        self.log_begin = log.stat().st_size if log.exists() else 0
        self.started_at = time.monotonic()
        process: Any = Forked(*module, environment=self.environment, out=log, err=log)
        self.process = process

    def ended(self) -> int | None:
        return None if self.process is None else self.process.poll()
