"""Runs the load generator in a process of its own."""

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
    """The load generator has ended without an answer, or too much of what it sent was refused."""


class Running:
    """A load generator that runs; leaving the context ends it."""

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

    def until_ready(self) -> None:
        """Wait for the streams of a plan that holds them."""
        self._line()

    def summary(self) -> Summary:
        """Wait for the end of the run."""
        return Summary.load(self._line())

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            raise GeneratorFailed(f"the load generator ended with {code}:\n{said}")
        return line


def run(plan: Plan, *, may_fail: bool = False) -> Summary:
    """Run a plan to its end.

    Raises:
        GeneratorFailed: a request was refused or broke, and that is not one of the figures (`may_fail`).
    """
    with Running(plan) as running:
        summary = running.summary()
    if summary.failed and not may_fail:
        raise GeneratorFailed(f"{summary.failed} requests failed, for example: {summary.first_failure}")
    return summary
