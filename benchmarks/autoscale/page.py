"""Formats results as the tables and the chart of docs/autoscaling.md."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.autoscale.chart import Line, Panel, svg
from benchmarks.autoscale.course import Course
from benchmarks.autoscale.sweep import WAIT_P95_S, Score

WINDOW_S = 900.0


def chart(scaled: Course, fixed: Course, name: str, hours: float) -> str:
    """Draw a day with the autoscaler and with a fixed fleet."""
    panels = [
        Panel("waiting jobs", [Line("autoscaled", scaled.waiting), Line(name, fixed.waiting)]),
        Panel(
            "workers (all running; ready)",
            [
                Line("autoscaled", scaled.replicas, step=True),
                Line(name, fixed.replicas, step=True),
                Line("ready", scaled.ready, step=True),
            ],
        ),
        Panel(
            "p95 wait per 15 minutes, seconds",
            [
                Line("autoscaled", scaled.waits_by_window(WINDOW_S, 0.95), step=True),
                Line(name, fixed.waits_by_window(WINDOW_S, 0.95), step=True),
            ],
        ),
        Panel(
            "cumulative GPU-hours",
            [
                Line("autoscaled", cumulative_gpu_hours(scaled)),
                Line(name, cumulative_gpu_hours(fixed)),
            ],
        ),
    ]
    return svg("One day of jobs: autoscaled, and with a fixed number of workers", panels, hours)


def cumulative_gpu_hours(course: Course) -> list[float]:
    """Return the GPU-hours up to each sample."""
    total, values = 0.0, []
    for replicas in course.replicas:
        total += replicas * course.sample_s / 3600
        values.append(total)
    return values


def figures(course: Course) -> dict[str, float]:
    """Return the figures of a run."""
    return {
        "gpu_hours": course.gpu_hours,
        "p50": course.wait(0.5),
        "p95": course.wait(0.95),
        "p99": course.wait(0.99),
        "waiting": max(course.waiting, default=0),
        "workers": max(course.replicas, default=0),
        "jobs": len(course.waits),
        "handed_back": course.handed_back,
    }


def day_table(rows: dict[str, dict[str, float]]) -> str:
    """Return a table of fleets."""
    head = ("fleet", "GPU-hours", "wait p50", "p95", "p99", "longest queue", "max workers")
    lines = [
        (
            name,
            f"{row['gpu_hours']:.1f}",
            *(f"{row[share]:.1f} s" for share in ("p50", "p95", "p99")),
            f"{row['waiting']:.0f}",
            f"{row['workers']:.0f}",
        )
        for name, row in rows.items()
    ]
    return table(head, lines)


def sweep_table(scores: Sequence[Score]) -> str:
    """Return a table of settings: those that meet the wait target by cost, then the others by wait."""
    ordered = sorted(scores, key=lambda score: score.rank)
    head = (
        *("threshold", "scale-down window", "cooldown", "polling", "scale-up", "min workers"),
        *("GPU-hours", "wait p95", "p99", "waits over 1 min", "requeued"),
    )
    lines = [
        (
            f"{score.setting.threshold:g}",
            f"{score.setting.down_s} s",
            f"{score.setting.cooldown_s} s",
            f"{score.setting.polling_s} s",
            score.setting.up,
            str(score.setting.min_replicas),
            f"{score.gpu_hours:.1f}",
            f"{score.p95:.1f} s" + ("" if score.meets_target else f" (over {WAIT_P95_S:.0f})"),
            f"{score.p99:.0f} s",
            f"{100 * score.late:.2f} %",
            f"{score.handed_back:.0f}",
        )
        for score in ordered
    ]
    return table(head, lines)


def real_table(model: dict[str, float], real: dict[str, float]) -> str:
    """Return a table that compares the model to real workers."""
    names = {
        "jobs": "jobs",
        "gpu_hours": "GPU-hours",
        "p50": "wait p50, s",
        "p95": "wait p95, s",
        "p99": "wait p99, s",
        "waiting": "longest queue",
        "workers": "max workers",
        "handed_back": "requeued",
    }
    lines = [(names[key], _number(model[key]), _number(real[key]), _deviation(model[key], real[key])) for key in names]
    return table(("figure", "model", "real", "deviation"), lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.2f}"


def _deviation(model: float, real: float) -> str:
    return f"{100 * (real / model - 1):+.0f} %" if model else "—"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def block(name: str, text: str, document: str) -> str:
    """Return the document with the text between the markers `name` replaced.

    Raises:
        ValueError: The document has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, opened, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"the document has no markers {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"
