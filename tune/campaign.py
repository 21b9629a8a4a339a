"""A run: plans the candidates of a model, measures those that are not in the results yet, and keeps the results."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.bundled_model import prepare
from launcher.errors import LaunchError
from launcher.progress import Progress
from launcher.quantize import checkpoint
from launcher.quantize.formats import EightBits, FourBits
from shared.config.models.vllm import VllmModel
from tune import machine, runner
from tune.candidates import BASELINE, Candidate, Surroundings, entry_of, plan
from tune.proposal import Aim, Bounds, combined, cost
from tune.results import Figures, Row, Store, key_of, weights_key
from tune.workload import Plan
from workers.engines.vllm.dtype import choose_dtype

# How long a candidate may take: the baseline, and others as a multiple of it, but at least `LEAST_LIMIT_S`. What takes
# longer pays for no aim, and would take most of the run.
BASELINE_LIMIT_S = 1800.0
LIMIT_FACTOR = 3.0
LEAST_LIMIT_S = 600.0
# A dtype with less than this share of the baseline's tokens/s is not combined with a quantization.
WORTH_QUANTIZING = 0.5

Measure = Callable[[Mapping[str, Any], Plan, Path, float, Callable[[str], None]], tuple[Figures, str | None]]


class Campaign:
    """The measurements of one model. `rows`: the results in the order of the plan."""

    def __init__(
        self,
        model: VllmModel,
        folder: Path,
        amount: Plan,
        aim: Aim,
        bounds: Bounds,
        *,
        limit: float | None = None,
        progress: Progress,
        measure: Measure = runner.run,
    ) -> None:
        """`limit`: the seconds after which a candidate is ended; None: as long as it is not much slower than the
        baseline."""
        self.model = model
        self.folder = folder
        self.aim = aim
        self.bounds = bounds
        self.rows: list[Row] = []
        self.machine = machine.description()
        self._amount = amount
        self._limit = limit
        self._progress = progress
        self._measure = measure
        self._store = Store(folder / "results.jsonl")
        # Of candidates that ran: the others end early, and say nothing about those that are left.
        self._durations: list[float] = []
        # The folders of the model's copies, by their bits.
        self._copies: dict[int, Path] = {}

    @property
    def has_figures(self) -> bool:
        """Whether anything could be measured."""
        return any(row.figures.speed for row in self.rows)

    def run(
        self,
        *,
        quick: bool,
        only: Sequence[str] | None = None,
        all_aims: bool = False,
        fresh: bool = False,
        retry: bool = False,
    ) -> None:
        """Measure all candidates, and the best ones together: for the aim, or with `all_aims` for each.

        Raises:
            LaunchError: there is no candidate of a name in `only`, or another process measures into the same folder.
            KeyboardInterrupt: the results so far are kept.
        """
        with _alone_in(self.folder):
            self._run(quick=quick, only=only, all_aims=all_aims, fresh=fresh, retry=retry)

    def _run(self, *, quick: bool, only: Sequence[str] | None, all_aims: bool, fresh: bool, retry: bool) -> None:
        if self.model.bundled_model is not None:
            prepare(self.model.bundled_model)
        candidates = plan(self.model, self._surroundings(), quick=quick)
        if only:
            names = [candidate.name for candidate in candidates]
            if unknown := set(only) - set(names):
                raise LaunchError(f"There is no candidate {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
            candidates = [candidate for candidate in candidates if candidate.name in only]
        self._progress.say(f"{len(candidates)} candidates; results in {self.folder}")
        left = sum(self._is_missing(candidate, fresh=fresh, retry=retry) for candidate in candidates)
        for candidate in candidates:
            missing = self._is_missing(candidate, fresh=fresh, retry=retry)
            self._one(candidate, left, fresh=fresh, retry=retry, named=bool(only))
            left -= missing
        if only:
            return
        for aim in Aim if all_aims else [self.aim]:
            together = combined(self.rows, aim, self.bounds)
            if together is not None and together.name not in {row.name for row in self.rows}:
                self._one(together, 1, fresh=fresh, retry=retry)

    def _one(self, candidate: Candidate, left: int, *, fresh: bool, retry: bool, named: bool = False) -> None:
        """Measure a candidate, unless that was done before or makes no sense. `named`: it was asked for by name."""
        if candidate.problem is not None:
            self._skip(candidate, candidate.problem)
            return
        if (problem := self._make_copy(candidate)) is not None:
            self._skip(candidate, problem)
            return
        entry, key = entry_of(self.model, candidate.changes), self._key(candidate)
        known = self._store.rows.get(key)
        if known is not None and not self._is_missing(candidate, fresh=fresh, retry=retry):
            known.name, known.group = candidate.name, candidate.group
            self._add(known)
            self._progress.say(f"  {candidate.name}: measured before")
            return
        if not named and (problem := self._slow_dtype(candidate)) is not None:
            self._skip(candidate, problem)
            return
        began = time.monotonic()
        figures, problem = self._measure(
            entry,
            self._amount,
            self.folder / "logs" / f"{key}.log",
            self._limit or self._usual_limit(),
            lambda step: self._show(candidate.name, step, began, left),
        )
        changes, seconds = dict(candidate.changes), time.monotonic() - began
        row = Row(key, candidate.name, candidate.group, changes, figures, problem, seconds)
        self._store.add(row)
        self._add(row)
        self._progress.say(f"  {candidate.name}: {_summary(row)}{self._time_left(left - 1)}")

    def _skip(self, candidate: Candidate, problem: str) -> None:
        self.rows.append(Row("", candidate.name, candidate.group, {}, problem=problem))
        self._progress.say(f"  {candidate.name}: {problem}")

    def _row(self, name: object) -> Row | None:
        """The row of a candidate that was measured."""
        return next((row for row in self.rows if row.name == name and row.problem is None), None)

    def _usual_limit(self) -> float:
        baseline = self._row(BASELINE)
        return BASELINE_LIMIT_S if baseline is None else max(LEAST_LIMIT_S, LIMIT_FACTOR * baseline.seconds)

    def _slow_dtype(self, candidate: Candidate) -> str | None:
        """Why a quantization of another dtype is not worth a measurement: a CPU may compute the dtype by conversion."""
        dtype = candidate.changes.get("dtype")
        baseline, converted = self._row(BASELINE), self._row(dtype)
        if "quantization" not in candidate.changes or baseline is None or converted is None:
            return None
        share = cost(baseline, Aim.THROUGHPUT) / cost(converted, Aim.THROUGHPUT)
        if share >= WORTH_QUANTIZING:
            return None
        return f"needs {dtype}, which has {share:.0%} of the baseline's tokens/s here; --only measures it anyway"

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        if row.figures.speed:
            self._durations.append(row.seconds)

    def _key(self, candidate: Candidate) -> str:
        weights = weights_key(candidate.changes.get("model", self.model.source))
        return key_of(entry_of(self.model, candidate.changes), weights, self.machine, self._amount)

    def _is_missing(self, candidate: Candidate, *, fresh: bool, retry: bool) -> bool:
        """Whether a candidate is to be measured."""
        if candidate.problem is not None:
            return False
        known = self._store.rows.get(self._key(candidate))
        return known is None or fresh or (retry and known.problem is not None)

    def _show(self, name: str, step: str, began: float, left: int) -> None:
        self._progress.show(f"  {name}: {step}, {time.monotonic() - began:.0f} s{self._time_left(left)}")

    def _time_left(self, left: int) -> str:
        if not left or not self._durations:
            return ""
        minutes = left * sum(self._durations) / len(self._durations) / 60
        return f"; about {max(1, round(minutes))} min left"

    def _surroundings(self) -> Surroundings:
        """What candidates there can be here."""
        gpu = bool(machine.gpus())
        dtype = choose_dtype(self.model.options, on_cpu=not gpu)
        dtype = "bfloat16" if dtype == "auto" else dtype
        if _is_quantized(self.model.folder):
            return Surroundings(gpu, dtype, quantized=True)
        if self.model.folder is None:
            command = shlex.join(["python", "-m", "launcher.quantize", "FOLDER", "--output", "..."])
            problem = f"{self.model.model} is not a folder on this machine: {command} needs one"
            return Surroundings(gpu, dtype, problem=problem)
        files = hashlib.sha256(weights_key(self.model.source).encode()).hexdigest()[:8]
        self._copies = {bits: self.folder / f"{bits}-bit-{files}" for bits in (4, 8)}
        return Surroundings(gpu, dtype, copies={bits: str(copy) for bits, copy in self._copies.items()})

    def _make_copy(self, candidate: Candidate) -> str | None:
        """Make the copy of the model that a candidate needs, if there is none of these files yet; why it cannot be."""
        copies = {str(copy): bits for bits, copy in self._copies.items()}
        bits = copies.get(candidate.changes.get("model", ""))
        if bits is None or (folder := self._copies[bits]).exists() or self.model.folder is None:
            return None
        try:
            source = checkpoint.read(self.model.folder)
            form = EightBits() if bits == 8 else FourBits(checkpoint.group_size_of(source, at_most=64) or 64)
            checkpoint.write(
                source, folder, form, lambda done, of: self._progress.show(f"  {bits}-bit copy: {done} of {of} layers")
            )
        except LaunchError as error:
            return str(error)
        self._progress.say(f"  {bits}-bit copy of the model in {folder}")
        return None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of the results; removes copies that a run which was killed has left unfinished.

    Raises:
        LaunchError: another process holds it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise LaunchError(f"{folder} cannot be written to: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"Another process measures into {folder}. Wait for it: two at a time would measure each other."
            ) from error
        for unfinished in folder.glob(".*.unfinished-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        yield


def _is_quantized(folder: Path | None) -> bool:
    if folder is None:
        return False
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


def _summary(row: Row) -> str:
    if row.problem is not None:
        return row.problem
    speeds = " / ".join(f"{speed:.0f}" for speed in row.figures.speed.values())
    streams = " / ".join(map(str, row.figures.speed))
    return f"{speeds} tokens/s with {streams} streams, measured in {row.seconds:.0f} s"
