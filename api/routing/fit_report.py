"""Prints how good a trained classifier is."""

from __future__ import annotations

from collections.abc import Iterator

from api.routing.fit import FOLDS, Report


def lines(report: Report) -> Iterator[str]:
    """The lines of a report."""
    yield (
        f"{report.examples:,} examples of {report.tasks:,} different tasks,"
        f" {_percent(report.complex_share)} of them complex"
    )
    if report.ambiguous:
        yield f"{report.ambiguous:,} tasks have different labels"
    yield ""
    yield f"On tasks it was not trained on ({FOLDS}-fold cross-validation):"
    yield f"  accuracy           {_percent(report.accuracy):>7}   the more frequent kind: {_percent(report.majority)}"
    yield f"  Brier score        {report.brier:7.3f}   a constant score: {report.brier_of_share:.3f}"
    yield f"  calibration error  {report.calibration_error:7.3f}"
    yield ""
    yield "  mode      target   threshold   to the first model   quality   at least (95 % confidence)"
    for mode, point in report.points.items():
        yield (
            f"  {mode.value:<8}  {_percent(point.target):>6}   {point.threshold:9.3f}   {_percent(point.to_first):>18}"
            f"   {_percent(point.quality):>7}   {_percent(point.at_least):>8}"
        )
    yield ""
    yield (
        "Quality: the share of requests that get a model that suffices."
        f" If the first model answered everything, it would be {_percent(report.quality_of_first)}."
    )
    for mode, point in report.points.items():
        if not point.to_first:
            yield (
                f"{mode.value}: no request goes to the first model, because the examples cannot show a quality of"
                f" {_percent(point.target)}; add examples, or lower --quality."
            )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
