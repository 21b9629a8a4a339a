"""Formats figures as tables, for the terminal and between the markers of a document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.bench import Figures
from benchmarks.goals import Verdict, verdicts
from benchmarks.statistics import number

BEGIN = "<!-- measured: begin; written by `python -m benchmarks --write` -->"
END = "<!-- measured: end -->"
Row = tuple[str, ...]


Sections = Mapping[str, str]


def goal_rows(evaluated: Sequence[Verdict]) -> list[Row]:
    rows: list[Row] = [("goal", "target", "measured", "")]
    for verdict in evaluated:
        measured = f"{number(verdict.value)} {verdict.goal.unit}".rstrip()
        rows.append((verdict.goal.title, verdict.target, measured, "met" if verdict.met else "MISSED"))
    return rows


def figure_rows(figures: Figures, scenario: str) -> list[Row]:
    rows: list[Row] = [("figure", "system", "median", "min", "max", "runs")]
    for key in figures.values:
        measured = figures.get(key)
        if key.scenario != scenario or measured is None:
            continue
        unit = figures.units[key]
        median = f"{_figure(measured.median)} {unit}".rstrip()
        minimum, maximum = _figure(measured.minimum), _figure(measured.maximum)
        rows.append((key.name, key.system, median, minimum, maximum, str(len(measured.values))))
    return rows


def scenarios(figures: Figures) -> list[str]:
    return list(dict.fromkeys(key.scenario for key in figures.values))


def plain(figures: Figures) -> str:
    """Return all tables for the terminal."""
    parts = [f"{scenario}\n{_aligned(figure_rows(figures, scenario))}" for scenario in scenarios(figures)]
    if evaluated := verdicts(figures):
        parts.append(f"goals\n{_aligned(goal_rows(evaluated))}")
    return "\n\n".join(parts)


def sections(figures: Figures, machine: Mapping[str, str], command: str) -> Sections:
    """Return the document's section for each scenario: command and machine, goals, figures."""
    measured_on = f"`{command}`: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."
    evaluated = verdicts(figures)
    new = {}
    for scenario in scenarios(figures):
        parts = [measured_on]
        if own := [verdict for verdict in evaluated if verdict.goal.key.scenario == scenario]:
            parts.append(_table(goal_rows(own)))
        parts.append(_table(figure_rows(figures, scenario)))
        new[scenario] = "\n\n".join(parts)
    return new


def write(document: Path, new: Sections, order: Sequence[str]) -> None:
    """Write sections between the markers of a document, in this order. All other text is kept.

    Raises:
        ValueError: The document has no markers.
    """
    text = document.read_text() if document.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    measured, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no markers: {BEGIN} and {END}")
    merged = {**_sections_of(measured), **new}
    names = sorted(merged, key=lambda name: order.index(name) if name in order else len(order))
    lines = "".join(f"\n### {name}\n\n{merged[name]}\n" for name in names)
    document.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")


def _sections_of(measured: str) -> Sections:
    """Parse the sections between the markers."""
    _, *parts = re.split(r"^### (.+)$", measured, flags=re.MULTILINE)
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _figure(value: float) -> str:
    return f"{value:.4f}" if 0 < abs(value) < 0.1 else number(value)


def _aligned(rows: Sequence[Row]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _table(rows: Sequence[Row]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
