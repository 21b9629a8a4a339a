"""What the page of a model says about what its engines run with."""

from __future__ import annotations

from api.console.fleet.engine_view import SHOWN_NAMES, engine_cards, engine_line
from shared.domain.engine_info import (
    AdaptersInfo,
    EngineInfo,
    KVCacheInfo,
    ParallelInfo,
    QuantizationInfo,
    SpeculationInfo,
)

VLLM = EngineInfo(
    engine="vLLM 0.32.0",
    device="cpu",
    dtype="bfloat16",
    quantization=QuantizationInfo(method="fp8_per_channel", origin="online"),
    attention_backend="CPU_ATTN",
    start="compiled",
    context=2048,
    slots=64,
    tokens_per_step=4096,
    chunked_prefill=True,
    prefix_caching=False,
    kv_cache=KVCacheInfo(dtype="bfloat16", block_tokens=128, block_bytes=1 << 20, blocks=1024, tokens=131_072),
    speculation=SpeculationInfo(method="ngram", tokens=4, tokens_per_batch_size=((1, 4, 4), (5, 64, 0))),
    adapters=AdaptersInfo(names=("tone", "legal"), max_rank=16),
    parallel=ParallelInfo(tensor=2),
    fingerprint="fp_0a1b2c3d4e5f",
)
SIMULATED = EngineInfo(engine="simulated", context=8192, slots=1, fingerprint="fp_1")


def test_all_that_an_engine_runs_with_is_shown() -> None:
    (card,) = engine_cards([("w", VLLM)])
    assert dict(card.facts) == {
        "Engine": "vLLM 0.32.0",
        "Device": "cpu",
        "Data type": "bfloat16",
        "Quantization": "fp8_per_channel, while loading",
        "Attention": "CPU_ATTN",
        "Start": "compiled",
        "Context": "2,048 tokens",
        "Slots": "64",
        "Tokens a step": "4,096",
        "Chunked prefill": "yes",
        "Prefix caching": "no",
        "KV cache": "1,024 blocks of 128 tokens, 1.0 GiB, bfloat16",
        "Speculation": "ngram, tokens by running requests: 4 at 1 to 4, 0 at 5 to 64",
        "Adapters": "tone, legal; rank up to 16",
        "Parallel": "tensor 2",
        "Fingerprint": "fp_0a1b2c3d4e5f",
    }


def test_what_a_model_runs_without_is_said() -> None:
    plain = EngineInfo(engine="vLLM 0.32.0", dtype="float32", start="fast", parallel=ParallelInfo())
    (card,) = engine_cards([("w", plain)])
    assert dict(card.facts) == {
        "Engine": "vLLM 0.32.0",
        "Data type": "float32",
        "Quantization": "none",
        "Start": "fast: eager, not compiled",
        "Speculation": "none",
    }


def test_engines_that_run_no_model_show_what_they_have() -> None:
    (card,) = engine_cards([("w", SIMULATED)])
    assert dict(card.facts) == {
        "Engine": "simulated",
        "Context": "8,192 tokens",
        "Slots": "1",
        "Fingerprint": "fp_1",
    }


def test_workers_that_run_with_the_same_are_shown_together() -> None:
    other = VLLM.model_copy(update={"dtype": "float32"})
    cards = engine_cards([("a", VLLM), ("b", other), ("c", VLLM), ("loading", None)])
    assert [card.workers for card in cards] == [["a", "c"], ["b"]]
    assert engine_cards([("loading", None)]) == []


def test_long_lists_are_cut() -> None:
    names = tuple(f"a{at}" for at in range(SHOWN_NAMES + 1))
    schedule = tuple((at, at, 1) for at in range(1, SHOWN_NAMES + 2))
    info = VLLM.model_copy(
        update={
            "adapters": AdaptersInfo(names=names, max_rank=8),
            "speculation": SpeculationInfo(method="draft_model", draft="small", tokens_per_batch_size=schedule),
        }
    )
    facts = dict(engine_cards([("w", info)])[0].facts)
    assert facts["Adapters"] == f"{', '.join(names[:-1])}, …; rank up to 8"
    assert facts["Speculation"].startswith("draft_model, drafts of small, tokens by running requests: 1 at 1 to 1, ")
    assert facts["Speculation"].endswith(f"1 at {SHOWN_NAMES} to {SHOWN_NAMES}, …")


def test_one_line() -> None:
    assert engine_line(VLLM) == "bfloat16 · fp8_per_channel · ngram speculation · CPU_ATTN · compiled"
    assert engine_line(VLLM.model_copy(update={"start": "fast", "quantization": None, "speculation": None})) == (
        "bfloat16 · CPU_ATTN · eager"
    )
    assert engine_line(SIMULATED) == engine_line(None) == ""
