"""Run benchmarks on this machine: each scenario starts its systems, loads them in turn, and stops them."""

from __future__ import annotations

import argparse
import resource
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.bench import Bench, Figures, Options
from benchmarks.machine import description
from benchmarks.scenarios import SCENARIOS
from launcher.settings import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="run only this scenario; repeatable")
    parser.add_argument("--repeats", type=int, help="runs per system (default: 5, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="short runs that only check that everything works")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device for vLLM (default: cpu)")
    parser.add_argument("--model", type=Path, help="vllm: folder of the model (default: the bundled SmolLM2)")
    parser.add_argument("--load-format", default="auto", help="vllm: `dummy` for a model without weights")
    parser.add_argument("--dtype", help="vllm: dtype of the model (default: auto on a GPU, float32 on a CPU)")
    parser.add_argument("--compiled", action="store_true", help="vllm: compile the model on a CPU too, as on a GPU")
    parser.add_argument("--write", action="store_true", help=f"write the results to {DOCUMENT.relative_to(REPOSITORY)}")
    parser.add_argument("--keep", action="store_true", help="keep the process logs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parsed(arguments)
    options = Options(
        repeats=chosen.repeats or (1 if chosen.quick else 5),
        quick=chosen.quick,
        device=chosen.device,
        model=chosen.model,
        load_format=chosen.load_format,
        dtype=chosen.dtype,
        compiled=chosen.compiled,
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `&` in a shell sets it to ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stop started processes, as Ctrl-C does
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    figures = Figures()
    failed: list[str] = []
    disturbed: list[str] = []
    try:
        for name in chosen.only or SCENARIOS:
            bench = Bench(name, options, folder / name, figures)
            try:
                SCENARIOS[name](bench)
                if bench.disturbed:
                    disturbed.append(f"{name}: {bench.disturbed} runs")
            except Exception as error:  # keep the figures of the other scenarios
                failed.append(name)
                bench.say(f"FAILED: {error!r}; logs in {bench.folder}")
    except KeyboardInterrupt:
        return 130
    finally:
        if figures.values:
            print(f"\n{report.plain(figures)}")
            if disturbed:
                print(f"\nDisturbed by other processes on this machine: {', '.join(disturbed)}")
        if not chosen.keep and not failed:
            shutil.rmtree(folder, ignore_errors=True)
    if chosen.write and not failed:
        words = ["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)]
        machine = description(options.device) | {"disturbed by other processes:": ", ".join(disturbed) or "none"}
        report.write(DOCUMENT, report.sections(figures, machine, shlex.join(words)), list(SCENARIOS))
        print(f"\nWrote {DOCUMENT}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
