"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tune.proposal import agreement_of, perplexity_rise, reference_of
from tune.results import Row

NOTHING = "–"


def markdown(rows: Sequence[Row]) -> str:
    """A table of the candidates that ran, one of the rest of their figures, and one of those that did not run."""
    measured = [row for row in rows if row.figures.speed]
    problems = [row for row in rows if row.problem is not None]
    reference = reference_of(rows)
    streams = sorted({number for row in measured for number in row.figures.speed})
    parts = []
    if measured:
        gpu = any(row.figures.gpu_memory for row in measured)
        header = ["candidate", *(f"{number} streams" if number > 1 else "1 stream" for number in streams)]
        header += ["first token", "load", "memory", *(["GPU memory"] if gpu else []), "perplexity", "agreement"]
        parts.append(_table(header, [_main(row, streams, reference, gpu=gpu) for row in measured]))
        header = ["candidate", "prefix new", "in the cache", "warmed", "repetitive text", "plain text"]
        parts.append(_table(header, [_more(row) for row in measured]))
    if problems:
        parts.append(
            _table(["candidate", "why it was not measured, or not completely"], [_problem(row) for row in problems])
        )
    return "\n".join(parts)


def _main(row: Row, streams: Sequence[int], reference: Row | None, *, gpu: bool) -> list[str]:
    figures = row.figures
    rise, same = perplexity_rise(row, reference), agreement_of(row, reference)
    perplexity = NOTHING if figures.perplexity is None else f"{figures.perplexity:.2f}"
    if rise is not None and row is not reference:
        perplexity += f" ({rise:+.1%})"
    return [
        row.name,
        *(_number(figures.speed, number) for number in streams),
        _milliseconds(figures.first_token.get(1)),
        _seconds(figures.load),
        _megabytes(figures.memory),
        *([_megabytes(figures.gpu_memory)] if gpu else []),
        perplexity,
        NOTHING if same is None else f"{same:.0%}",
    ]


def _more(row: Row) -> list[str]:
    figures = row.figures
    times = (figures.cold, figures.cached, figures.warmed)
    speeds = (figures.repetitive, figures.plain)
    return [
        row.name,
        *map(_milliseconds, times),
        *(NOTHING if speed is None else f"{speed:.1f}" for speed in speeds),
    ]


def _problem(row: Row) -> list[str]:
    return [row.name, (row.problem or "").replace("|", "\\|")]


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    align = ["---"] + ["--:" if len(header) > 2 else "---"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, align, *lines))


def _number(values: Mapping[int, float], key: int) -> str:
    value = values.get(key)
    return NOTHING if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 1000:.0f} ms"


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} s"


def _megabytes(value: int | None) -> str:
    return NOTHING if value is None else f"{value / 1e6:.0f} MB"
