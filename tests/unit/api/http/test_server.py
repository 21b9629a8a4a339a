"""How many clients may be connected, by the process's limit of open files."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, because a lowered limit cannot be raised again.
PROGRAM = """
import logging, resource, sys
from api.http.server import Connections
from api.settings import HttpSettings
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

logging.basicConfig(format="%(message)s")
soft, hard, wanted, reserved = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
settings = HttpSettings.model_construct(**{
    name: field.default for name, field in HttpSettings.model_fields.items()
} | {"max_connections": wanted})
connections = Connections(settings, 60.0, Metrics(Exporter.API, ()), reserved_files=reserved)
print(connections.limit, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
HARD = 1100


@pytest.mark.parametrize(
    ("wanted", "reserved", "expected"),
    [
        (100, 200, "100 300 1100"),  # the limit of open files is raised to what is needed
        (1000, 100, "1000 1100 1100"),
        (1000, 400, "700 1100 1100"),
        (1000, 2000, "1 1100 1100"),
        (10, 20, "10 256 1100"),  # it is not lowered
    ],
)
def test_some_open_files_are_not_for_clients(wanted: int, reserved: int, expected: str) -> None:
    arguments = [sys.executable, "-c", PROGRAM, "256", str(HARD), str(wanted), str(reserved)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == expected
    assert ("at most" in done.stderr) == (int(expected.split()[0]) < wanted)
