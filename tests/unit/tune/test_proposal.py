"""The proposal, the table and the chart, from recorded results."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import yaml

from shared.config.models.vllm import VllmModel
from tests.unit.tune.rows import MODEL, recorded, row
from tune.chart import svg
from tune.proposal import Aim, Bounds, block, choose, combined, reason
from tune.table import markdown

BOUNDS = Bounds()


@pytest.mark.parametrize(
    ("aim", "name"), [(Aim.LATENCY, "n-gram"), (Aim.THROUGHPUT, "bfloat16"), (Aim.MEMORY, "bfloat16")]
)
def test_each_aim_has_its_winner(aim: Aim, name: str) -> None:
    chosen = choose(recorded(), aim, BOUNDS)
    assert chosen is not None
    assert chosen.name == name


def test_a_loss_of_quality_is_taken_only_if_it_is_accepted() -> None:
    for bounds, name in ((Bounds(perplexity=0.25), "4 bits"), (Bounds(0.25, agreement=0.9), "bfloat16")):
        chosen = choose(recorded(), Aim.MEMORY, bounds)
        assert chosen is not None
        assert chosen.name == name


def test_a_gain_within_the_noise_is_none() -> None:
    rows = [row("baseline", "baseline"), row("a", "cache", {"kv_cache_dtype": "fp8"}, busy=408)]
    chosen = choose(rows, Aim.THROUGHPUT, BOUNDS)
    assert chosen is rows[0]
    assert reason(rows[0], rows, Aim.THROUGHPUT, BOUNDS).startswith("No change that may be used is better by more")


def test_of_candidates_that_are_as_good_the_one_with_fewer_changes_is_chosen() -> None:
    rows = [
        row("baseline", "baseline"),
        row("a", "weights", {"dtype": "bfloat16"}, busy=600),
        row("a + b", "combined", {"dtype": "bfloat16", "max_num_seqs": 128}, busy=610),
    ]
    assert choose(rows, Aim.THROUGHPUT, BOUNDS) is rows[1]


def test_less_memory_may_not_cost_much_speed() -> None:
    rows = [row("baseline", "baseline"), row("slow", "weights", {"a": 1}, busy=200, memory=1)]
    assert choose(rows, Aim.MEMORY, BOUNDS) is rows[0]
    assert "Not slow (0 MB at the peak): it has less than 80% of the tokens/s" in reason(
        rows[0], rows, Aim.MEMORY, BOUNDS
    )


def test_a_better_candidate_that_loses_quality_is_named_with_its_loss() -> None:
    chosen = choose(recorded(), Aim.MEMORY, BOUNDS)
    assert chosen is not None
    assert "Not 4 bits (" in reason(chosen, recorded(), Aim.MEMORY, BOUNDS)
    assert "its perplexity is" in reason(chosen, recorded(), Aim.MEMORY, BOUNDS)
    accepted = Bounds(perplexity=0.25)
    assert "Not " not in reason(recorded()[0], recorded()[:1], Aim.MEMORY, accepted)


def test_without_a_baseline_or_with_all_failed_there_is_no_proposal() -> None:
    assert choose([row("baseline", "baseline", problem="no")], Aim.LATENCY, BOUNDS) is None


def test_if_only_the_entry_without_quantization_runs_it_is_proposed() -> None:
    rows = [row("baseline", "baseline", problem="no kernel"), row("not quantized", "weights", {"quantization": None})]
    chosen = choose(rows, Aim.THROUGHPUT, BOUNDS)
    assert chosen is rows[1]
    assert reason(chosen, rows, Aim.THROUGHPUT, BOUNDS) == (
        "not quantized: 490 tokens/s at 16 and more streams. models.yaml as it is could not be measured."
    )


def test_the_best_of_each_group_are_tried_together() -> None:
    together = combined(recorded(), Aim.THROUGHPUT, BOUNDS)
    assert together is not None
    assert together.name == "bfloat16 + compiled"
    assert together.changes == {"dtype": "bfloat16", "enforce_eager": False}
    assert combined(recorded()[:2], Aim.THROUGHPUT, BOUNDS) is None


def test_the_block_can_be_pasted() -> None:
    chosen = recorded()[2]
    text = block(MODEL, chosen)
    assert all(line.startswith("    ") for line in text.splitlines())
    entry = yaml.safe_load(f"models:\n  - name: m\n    engine: vllm\n{text}")["models"][0]
    model = VllmModel.model_validate(entry)
    assert model.model == "/tuned/4-bit"
    assert model.options == MODEL.options


def test_the_reason_names_gain_and_quality() -> None:
    rows = recorded()
    assert reason(rows[1], rows, Aim.THROUGHPUT, BOUNDS) == (
        "bfloat16: 644 tokens/s at 16 and more streams, 31% more than with models.yaml as it is."
        " Perplexity +0.10%; 100% of greedy tokens as before."
        " Not 4 bits (686 tokens/s at 16 and more streams): its perplexity is 20.0% higher, and 1.0% is accepted."
    )


def test_the_table_has_all_candidates_and_the_reasons_of_those_that_failed() -> None:
    text = markdown(recorded())
    lines = text.splitlines()
    assert "| 4 bits | 70.0 | 560 | 840 | 50 ms | 20 s | 600 MB | 24.00 (+20.0%) | 62% |" in lines
    assert "| bfloat16 | 1500 ms | 200 ms | 250 ms | 80.0 | 40.0 |" in lines
    assert "| FP8 per tensor (online) | no kernel \\| for this CPU |" in lines
    for table in text.split("\n\n"):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_chart_is_an_svg_with_a_bar_for_each_figure() -> None:
    rows = recorded()
    rows[1] = replace(rows[1], name="<bfloat16> & more")
    root = ET.fromstring(svg("m: options", rows))  # noqa: S314 - written by this test's subject
    bars = [element for element in root.iter() if element.get("class") in ("bar", "baseline", "combined")]
    assert len(bars) == 5 * 4  # five candidates ran; speed of 1, 16 and 64 streams, and memory
    assert all(0 < float(bar.get("width", "0")) < 200 for bar in bars)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "<bfloat16> & more" in texts
    assert "4 bits (perplexity +20%)" in texts
    assert "prefers-color-scheme: dark" in svg("m", rows)
