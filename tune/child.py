"""Measures one candidate: started by `tune.runner` with a job on stdin; writes one JSON object a line to a pipe.

Each line is `[name, value]`: a figure, `"step"` with what begins, or `"problem"`. A process of its own for each engine,
because vLLM cannot release everything that it has loaded.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shared.config.models.loader import ModelSpec
from shared.config.models.vllm import VllmModel
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics
from tune.measure import Measurement
from tune.workload import Plan
from workers.engines.factory import make_engine
from workers.main import die_with_parent


def main() -> int:
    job = json.load(sys.stdin)
    pipe = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def report(name: str, value: Any) -> None:
        pipe.write(json.dumps([name, value] if value is not None else ["step", name]) + "\n")

    try:
        asyncio.run(_measure(job, report))
    except Exception as error:  # a problem of this candidate: the others are measured all the same
        report("problem", _text(error, job["entry"]))
        raise
    return 0


async def _measure(job: dict[str, Any], report: Any) -> None:
    model = TypeAdapter[ModelSpec](ModelSpec).validate_python(job["entry"])
    assert isinstance(model, VllmModel)
    values = job["plan"]
    plan = Plan(**{**values, "tokens": {int(streams): tokens for streams, tokens in values["tokens"].items()}})
    engine = make_engine(model, Metrics(Exporter.WORKER, (model.name,)))
    report("load", None)
    await engine.start()
    try:
        # From the start of the process, as the operator sees it: imports take a part of it.
        report("load", time.time() - job["began"])
        await Measurement(engine, model, plan, report).run()
    finally:
        await engine.stop()


def _text(error: Exception, entry: Mapping[str, Any]) -> str:
    """Why the engine did not start. Without the place of the entry: the candidate is not in the file."""
    if isinstance(error, ValidationError):
        return "; ".join(problem["msg"] for problem in error.errors(include_url=False))
    lines = str(error).splitlines() or [type(error).__name__]
    return "; ".join(re.sub(rf"^\S+: {re.escape(entry['name'])}\.", "", line) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":
    # vLLM's engine process, which would outlive this one if it is killed, with all of the model's memory.
    die_with_parent()
