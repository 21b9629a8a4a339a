"""Recorded results, for the tests of what is made from them."""

from __future__ import annotations

from typing import Any

from shared.config.models.vllm import VllmModel
from tune.results import Figures, Row

MODEL = VllmModel.model_validate(
    {
        "name": "m",
        "engine": "vllm",
        "model": "/models/m",
        "options": {"enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 64},
    }
)


def row(
    name: str,
    group: str,
    changes: dict[str, Any] | None = None,
    *,
    alone: float = 40,
    busy: float = 400,
    memory: int = 1_000_000_000,
    perplexity: float = 20.0,
    answers: list[list[int]] | None = None,
    problem: str | None = None,
) -> Row:
    figures = Figures(
        load=20.0,
        speed={1: alone, 16: busy, 64: busy * 1.5},
        first_token={1: 0.05, 16: 0.2, 64: 0.6},
        memory=memory,
        perplexity=perplexity,
        answers=answers or [[1, 2, 3, 4], [5, 6, 7, 8]],
        cold=1.5,
        cached=0.2,
        warmed=0.25,
        repetitive=80.0,
        plain=40.0,
    )
    return Row(name, name, group, changes or {}, Figures() if problem else figures, problem, 60.0)


def recorded() -> list[Row]:
    return [
        row("baseline", "baseline"),
        row("bfloat16", "weights", {"dtype": "bfloat16"}, alone=54, busy=526, perplexity=20.02, memory=800_000_000),
        row(
            "4 bits",
            "weights",
            {"model": "/tuned/4-bit"},
            alone=70,
            busy=560,
            perplexity=24.0,
            memory=600_000_000,
            answers=[[1, 9, 3, 4], [5, 6, 7, 8]],
        ),
        row("n-gram", "speculation", {"speculative_config": {"method": "ngram"}}, alone=60, busy=318),
        row("compiled", "start", {"enforce_eager": False}, alone=50, busy=450),
        row("FP8 per tensor (online)", "weights", {"quantization": "fp8"}, problem="no kernel | for this CPU"),
    ]
