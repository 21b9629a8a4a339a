"""Runs the load generator in a separate process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Self

from benchmarks.load.plan import Plan, Summary
from launcher.linux import die_with_parent
from launcher.settings import REPOSITORY


class GeneratorFailed(Exception):
    """The load generator exited without a summary, or requests failed that must not fail."""


class Running:
    """A running load generator; leaving the context kills it."""

    def __init__(self, plan: Plan) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the context is left
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=REPOSITORY,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        assert self._process.stdin is not None
        self._process.stdin.write(plan.dump() + b"\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def wait_until_ready(self) -> None:
        """Wait until a `hold` plan has opened its streams."""
        self._read_line()

    def summary(self) -> Summary:
        """Wait for the run to end. Returns its summary."""
        return Summary.load(self._read_line())

    def _read_line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            stderr = self._errors.read().decode(errors="replace")[-2000:]
            raise GeneratorFailed(f"the load generator exited with {code}:\n{stderr}")
        return line


def run(plan: Plan, *, may_fail: bool = False) -> Summary:
    """Run a plan to completion.

    Raises:
        GeneratorFailed: A request failed and `may_fail` is not set.
    """
    with Running(plan) as running:
        summary = running.summary()
    if summary.failed and not may_fail:
        raise GeneratorFailed(f"{summary.failed} requests failed; the first: {summary.first_failure}")
    return summary
