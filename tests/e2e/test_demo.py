"""`make demo`, with simulated models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.stack import REPOSITORY


def test_the_demonstration_shows_every_part(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment |= {"ENGINE": "simulated", "TMPDIR": str(tmp_path)}
    # Settings of the user's own installation do not apply.
    environment |= {"HEADRACE_PORT": "1", "HEADRACE_ROUTING_MODEL": "/nowhere", "REDIS_URL": "redis://nowhere:1"}
    shown = subprocess.run(
        [sys.executable, "-m", "demo", "--identical", "8"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "auto; rule=tools" in shown.stdout
    assert "auto; rule=long" in shown.stdout
    assert {"small", "large"} <= set(re.findall(r"  (small|large)  +auto; rule=complexity", shown.stdout))
    assert re.search(r"MISS +large .*\n  HIT +large .*\n  HIT +large ", shown.stdout)
    assert "1 run of a model; all answers are equal" in shown.stdout
    assert re.search(r"from the response cache +[1-9]", shown.stdout)
    assert re.search(r"saved for large.* [1-9]", shown.stdout)
    assert list(tmp_path.iterdir()) == [], "its state is deleted"
