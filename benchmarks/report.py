"""The figures as tables, on the terminal and between the markers of a document."""

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


def goal_rows(judged: Sequence[Verdict]) -> list[Row]:
    rows: list[Row] = [("goal", "target", "measured", "")]
    for verdict in judged:
        measured = f"{number(verdict.value)} {verdict.goal.unit}".rstrip()
        rows.append((verdict.goal.what, verdict.target, measured, "met" if verdict.met else "MISSED"))
    return rows


def figure_rows(figures: Figures, scenario: str) -> list[Row]:
    rows: list[Row] = [("figure", "system", "median", "min", "max", "runs")]
    for key in figures.values:
        measured = figures.get(key)
        if key.scenario != scenario or measured is None:
            continue
        unit = figures.units[key]
        median = f"{_figure(measured.median)} {unit}".rstrip()
        least, most = _figure(measured.least), _figure(measured.most)
        rows.append((key.name, key.system, median, least, most, str(len(measured.values))))
    return rows


def scenarios(figures: Figures) -> list[str]:
    return list(dict.fromkeys(key.scenario for key in figures.values))


def plain(figures: Figures) -> str:
    """All tables for a terminal."""
    parts = [f"{scenario}\n{_aligned(figure_rows(figures, scenario))}" for scenario in scenarios(figures)]
    if judged := verdicts(figures):
        parts.append(f"goals\n{_aligned(goal_rows(judged))}")
    return "\n\n".join(parts)


def sections(figures: Figures, machine: Mapping[str, str], command: str) -> Sections:
    """A document's section for each scenario: what it was measured with and on, what of it are goals, its figures."""
    measured_on = f"`{command}`: " + ", ".join(f"{name} {value}" for name, value in machine.items()) + "."
    judged = verdicts(figures)
    made = {}
    for scenario in scenarios(figures):
        parts = [measured_on]
        if own := [verdict for verdict in judged if verdict.goal.key.scenario == scenario]:
            parts.append(_table(goal_rows(own)))
        parts.append(_table(figure_rows(figures, scenario)))
        made[scenario] = "\n\n".join(parts)
    return made


def write(document: Path, made: Sections, order: Sequence[str]) -> None:
    """Put sections between a document's markers, in this order. Those of other scenarios stay, as what stands around.

    Raises:
        ValueError: there are no markers.
    """
    text = document.read_text() if document.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    measured, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no markers: {BEGIN} and {END}")
    all_of_them = {**_sections_of(measured), **made}
    names = sorted(all_of_them, key=lambda name: order.index(name) if name in order else len(order))
    lines = "".join(f"\n### {name}\n\n{all_of_them[name]}\n" for name in names)
    document.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")


def _sections_of(measured: str) -> Sections:
    """The sections that stand between the markers."""
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
