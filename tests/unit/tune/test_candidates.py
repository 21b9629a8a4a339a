"""Which options are tried."""

from __future__ import annotations

from shared.config.models.vllm import VllmModel
from tests.unit.tune.rows import MODEL
from tune.candidates import BASELINE, UNQUANTIZED, Candidate, Surroundings, by_load, entry_of, plan

COPIES = {4: "/tuned/4-bit", 8: "/tuned/8-bit"}
CPU = Surroundings(gpu=False, dtype="float32", copies=COPIES)
GPU = Surroundings(gpu=True, dtype="bfloat16", copies=COPIES)


def names(found: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in found]


def with_options(**options: object) -> VllmModel:
    return MODEL.model_copy(update={"options": {**MODEL.options, **options}})


def test_the_baseline_is_first_and_unchanged() -> None:
    first = plan(MODEL, CPU, quick=False)[0]
    assert first.name == BASELINE
    assert entry_of(MODEL, first.changes)["options"] == MODEL.options


def test_no_candidate_is_tried_twice() -> None:
    for here in (CPU, GPU):
        entries = [str(entry_of(MODEL, candidate.changes)) for candidate in plan(MODEL, here, quick=False)]
        assert len(entries) == len(set(entries))


def test_quick_tries_a_part_of_them() -> None:
    quick, full = plan(MODEL, CPU, quick=True), plan(MODEL, CPU, quick=False)
    assert names(quick) == [
        BASELINE,
        "bfloat16",
        "INT8",
        "4 bits",
        "n-gram speculation, by load",
    ]
    assert set(names(quick)) < set(names(full))


def test_the_dtype_that_is_used_anyway_is_not_tried() -> None:
    assert "float32" not in names(plan(MODEL, CPU, quick=False))
    assert "float32" in names(plan(MODEL, Surroundings(False, "bfloat16"), quick=False))


def test_online_quantization_starts_from_16_bits() -> None:
    by_name = {candidate.name: candidate for candidate in plan(MODEL, CPU, quick=False)}
    assert by_name["FP8 per tensor (online)"].changes["dtype"] == "bfloat16"
    by_name = {candidate.name: candidate for candidate in plan(MODEL, GPU, quick=False)}
    assert "dtype" not in by_name["FP8 per tensor (online)"].changes


def test_attention_backends_are_tried_on_a_gpu_only() -> None:
    assert "FlashInfer" in names(plan(MODEL, GPU, quick=False))
    assert "FlashInfer" not in names(plan(MODEL, CPU, quick=False))


def test_the_cache_is_offloaded_on_a_gpu_only() -> None:
    assert "KV offload to memory" in names(plan(MODEL, GPU, quick=False))
    assert "KV offload to memory" not in names(plan(MODEL, CPU, quick=False))


def test_quantized_weights_are_not_quantized_again() -> None:
    found = plan(MODEL, Surroundings(False, "float32", quantized=True), quick=False)
    assert "weights" not in {candidate.group for candidate in found}


def test_a_quantized_entry_is_compared_to_one_that_is_not() -> None:
    found = plan(with_options(quantization="int8_per_channel_weight_only"), CPU, quick=True)
    unquantized = next(candidate for candidate in found if candidate.name == UNQUANTIZED)
    assert "quantization" not in entry_of(with_options(quantization="x"), unquantized.changes)["options"]


def test_a_copy_of_the_model_is_another_model() -> None:
    by_name = {candidate.name: candidate for candidate in plan(MODEL, CPU, quick=True)}
    assert entry_of(MODEL, by_name["INT8"].changes)["model"] == "/tuned/8-bit"
    assert entry_of(MODEL, by_name["4 bits"].changes)["model"] == "/tuned/4-bit"


def test_without_a_copy_the_candidate_says_why() -> None:
    found = plan(MODEL, Surroundings(False, "float32", problem="no space"), quick=True)
    assert next(candidate for candidate in found if candidate.name == "4 bits").problem == "no space"


def test_the_other_way_to_start_is_tried() -> None:
    assert "compiled" in names(plan(MODEL, CPU, quick=False))
    assert "eager" in names(plan(with_options(enforce_eager=False), CPU, quick=False))


def test_changes_add_replace_and_remove_options() -> None:
    entry = entry_of(MODEL, {"dtype": "bfloat16", "max_num_seqs": 16, "enforce_eager": None, "model": "/other"})
    assert entry["options"] == {"max_model_len": 2048, "max_num_seqs": 16, "dtype": "bfloat16"}
    assert entry["model"] == "/other"
    assert MODEL.options["max_num_seqs"] == 64


def test_speculation_by_load_covers_all_slots_once() -> None:
    for slots in (1, 3, 6, 8, 64):
        schedule = by_load(slots)["num_speculative_tokens_per_batch_size"]
        covered = [number for first, last, _ in schedule for number in range(first, last + 1)]
        assert covered == list(range(1, slots + 1))
        VllmModel.model_validate(entry_of(MODEL, {"speculative_config": by_load(slots)}))
