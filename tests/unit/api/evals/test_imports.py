"""SciPy takes a second to import and 40 MB: an API process loads it when somebody compares two models."""

from __future__ import annotations

import subprocess
import sys

from tests.support.stack import REPOSITORY


def test_an_api_process_starts_without_scipy() -> None:
    probe = "import sys; import api.app; print('scipy' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", probe], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"
