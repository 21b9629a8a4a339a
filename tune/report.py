"""Writes the table, the chart and the proposal."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import LaunchError
from tune.campaign import Campaign
from tune.chart import svg
from tune.proposal import Aim, block, choose, reason
from tune.table import markdown

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def write(campaign: Campaign) -> str:
    """Write `report.md` and `chart.svg` to the folder of the results; returns the text to print."""
    if not campaign.has_figures:
        problems = "\n".join(f"{row.name}: {row.problem}" for row in campaign.rows if row.problem)
        return f"Nothing could be measured.\n{problems}"
    chart = campaign.folder / "chart.svg"
    chart.write_text(svg(_title(campaign), campaign.rows))
    text = "\n".join([markdown(campaign.rows), proposal(campaign, campaign.aim)])
    report = campaign.folder / "report.md"
    report.write_text(f"# {_title(campaign)}\n\n{_machine(campaign)}\n\n![Chart](chart.svg)\n\n{text}")
    return f"{text}\nTable: {report}\nChart: {chart}"


def write_document(campaign: Campaign, document: Path) -> None:
    """Write the results into a page, between its two marks, and the chart beside it.

    Raises:
        LaunchError: the page has no such marks.
    """
    page = document.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LaunchError(f"{document} has no lines {BEGIN} and {END}.")
    chart = document.with_suffix(".svg")
    chart.write_text(svg(_title(campaign), campaign.rows))
    parts = [
        _machine(campaign),
        f"![{_title(campaign)}]({chart.name})",
        markdown(campaign.rows),
        *(proposal(campaign, aim) for aim in Aim),
    ]
    text = "\n\n".join(part.strip() for part in parts)
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def proposal(campaign: Campaign, aim: Aim) -> str:
    """The options for an aim, ready to paste, and why these."""
    row = choose(campaign.rows, aim, campaign.bounds)
    if row is None:
        return f"For {aim}: no proposal, because this run has no figures of the baseline.\n"
    lines = block(campaign.model, row)
    return f"For {aim}: {reason(row, campaign.rows, aim, campaign.bounds)}\n\n```yaml\n{lines}```\n"


def _title(campaign: Campaign) -> str:
    return f"{campaign.model.name}: vLLM's options measured"


def _machine(campaign: Campaign) -> str:
    return "; ".join(f"{name}: {value}" for name, value in campaign.machine.items())
