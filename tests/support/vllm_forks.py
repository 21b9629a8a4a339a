"""Processes that use vLLM, forked from a process that has imported it.

The import takes ten seconds or more of CPU time, and vLLM spawns its engine process, which imports all again. Those of
workers are spawned, as always in use; those of test processes are forked. vLLM's own server cannot be forked from here:
it takes its limit of stop strings, which is not ours, from the environment when it is imported.
"""

from __future__ import annotations

import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.popen_forkserver
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.forked import LOCK, leave_server, run_forked

_server = multiprocessing.forkserver.ForkServer()
_server.set_forkserver_preload([f"{__package__}.imported_vllm"])


class _Popen(multiprocessing.popen_forkserver.Popen):
    """Forks from this module's server instead of the only one that multiprocessing knows."""

    def _launch(self, process_obj: Any) -> None:
        with LOCK, pytest.MonkeyPatch.context() as patch:
            patch.setattr(multiprocessing.forkserver, "connect_to_new_process", _server.connect_to_new_process)
            super()._launch(process_obj)  # type: ignore[misc]


class VllmProcess(multiprocessing.context.ForkServerProcess):
    """A process that has imported vLLM."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  # of multiprocessing
        return _Popen(process_obj)


class EngineProcess(VllmProcess):
    """An engine process. It has the environment of the process that starts it, as if it had been spawned."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        leave_server()
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Context(multiprocessing.context.ForkServerContext):
    Process = VllmProcess


class _EngineContext(multiprocessing.context.ForkServerContext):
    Process = EngineProcess


FORK_WITH_VLLM = _Context()


def run_with_vllm(
    module: str, *arguments: str, environment: Mapping[str, str], timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Like `run_forked`, for a module that imports vLLM."""
    return run_forked(module, *arguments, environment=environment, timeout=timeout, context=FORK_WITH_VLLM)


@contextmanager
def forked_engines() -> Iterator[None]:
    """Let vLLM fork the engine processes that it starts meanwhile."""
    import vllm.v1.engine.utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm.v1.engine.utils, "get_mp_context", _EngineContext)
        yield
