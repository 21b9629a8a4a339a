"""Options that cannot work here are refused before the model is loaded, by asking the installed vLLM."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from tests.support.real_engine import CONTEXT, SMOLLM2

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

NGRAM = {"method": "ngram", "num_speculative_tokens": 4}


def model(start: str | None = None, **options: Any) -> VllmModel:
    """The bundled model with these options; None removes one."""
    chosen = {name: value for name, value in {**SMOLLM2.options, **options}.items() if value is not None}
    if start is not None:
        del chosen["enforce_eager"]
    fields = {"name": "m", "engine": "vllm", "model": SMOLLM2.model, "options": chosen, "start": start}
    return VllmModel.model_validate(fields)


def refusal(chosen: VllmModel) -> str:
    from workers.engines.vllm.plan import make_plan

    with pytest.raises(InvalidRequest) as error:
        make_plan(chosen)
    return str(error.value)


SPECULATION = "options.speculative_config"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"max_num_seqz": 8}, r"m\.options\.max_num_seqz: vLLM \S+ has no max_num_seqz; .*max_num_seqs"),
    "name of the command line": ({"max-num-seqs": 8}, r"m\.options\.max-num-seqs: .*did you mean 'max_num_seqs'"),
    "option of another field": ({"served_model_name": "x"}, r"m\.options\.served_model_name: .* set name instead"),
    "unknown method": (
        {"quantization": "bitsandbytes"},
        r"m\.options\.quantization: this build of vLLM .* has no method",
    ),
    "misspelt method": ({"quantization": "compressed_tensors"}, r"did you mean 'compressed-tensors'\?"),
    "not a quantized checkpoint": (
        {"quantization": "awq", "dtype": "bfloat16"},
        r"m\.options\.quantization: the model's files are not quantized with awq; name a model whose files are, or"
        r" use fp8_per_channel, which quantizes while loading",
    ),
    "another dtype": (
        {"quantization": "fp8_per_block"},
        r"m\.options\.quantization: fp8_per_block does not run in float32; set options\.dtype to bfloat16 or float16",
    ),
    "needs a GPU": (
        {"quantization": "fp8_per_tensor", "dtype": "bfloat16"},
        r"m\.options\.quantization: fp8_per_tensor does not run on a CPU \(.+\); these do: fp8_per_channel, .*GPTQ",
    ),
    "quantizes nothing": (
        {"quantization": "int8_per_channel_weight_only", "dtype": "bfloat16"},
        r"m\.options\.quantization: int8_per_channel_weight_only quantizes only the experts .* nothing would be",
    ),
    "quantizes nothing, by another class": (
        {"quantization": "experts_int8", "dtype": "bfloat16"},
        r"experts_int8 quantizes only the experts .*; use fp8_per_channel, or omit the option",
    ),
    "quantization by layer without layers": (
        {"quantization": "online", "dtype": "bfloat16"},
        r"m\.options\.quantization: online needs options\.quantization_config",
    ),
    "unknown attention backend": (
        {"attention_backend": "FLASH_ATN"},
        r"no attention backend 'FLASH_ATN'; .*FLASH_AT",
    ),
    "attention backend of a GPU": (
        {"attention_backend": "FLASHINFER"},
        r"m\.options\.attention_backend: FLASHINFER does not run on cpu; use CPU_ATTN, or omit it",
    ),
    "too few devices": (
        {"tensor_parallel_size": 64},
        r"m\.options\.tensor_parallel_size: needs 64 NUMA nodes that it may use, and this machine has \d+; ",
    ),
    "context over the model's": (
        {"max_model_len": 100_000, "kv_cache_memory_bytes": 1 << 33},
        r"m\.options\.max_model_len: vLLM refuses it: .*100000.*8192",
    ),
    "cache below the context": (
        {"max_model_len": 8192, "kv_cache_memory_bytes": 1 << 26},
        r"m\.options\.kv_cache_memory_bytes: the KV cache holds \d+ tokens, fewer than one request of max_model_len"
        r" \(8192\); set it to at least \d+, or max_model_len to at most \d+",
    ),
    "option that the platform changes": (
        {"async_scheduling": True},
        r"m\.options\.async_scheduling: vLLM uses False here instead of True; omit it",
    ),
    "budget below the context without chunks": (
        {"enable_chunked_prefill": False, "max_num_batched_tokens": CONTEXT // 2, "max_num_seqs": 4},
        r"m\.options\.max_num_batched_tokens: vLLM refuses it: ",
    ),
    "unknown dtype": ({"dtype": "float31"}, r"m\.options\.dtype: vLLM refuses it: .*'bfloat16'"),
    "unknown field of speculation": (
        {"speculative_config": {**NGRAM, "num_speculative_token": 4}},
        rf"m\.{SPECULATION}\.num_speculative_token: .* did you mean 'num_speculative_tokens'",
    ),
    "unknown method of speculation": (
        {"speculative_config": {**NGRAM, "method": "n-gram"}},
        rf"m\.{SPECULATION}\.method: vLLM \S+ has no method 'n-gram'; did you mean 'ngram'\?",
    ),
    "speculation without a method": ({"speculative_config": {"num_speculative_tokens": 4}}, r"needs a method"),
    "speculation on a GPU": (
        {"speculative_config": {**NGRAM, "method": "ngram_gpu"}},
        rf"m\.{SPECULATION}\.method: ngram_gpu needs a GPU; use ngram",
    ),
    "no draft model": ({"speculative_config": {"method": "eagle", "num_speculative_tokens": 2}}, r"model: is required"),
    "missing draft model": (
        {"speculative_config": {"model": "/models/none", "num_speculative_tokens": 2}},
        rf"m\.{SPECULATION}\.model: there is no folder /models/none",
    ),
    "home of a draft model": ({"speculative_config": {"model": "~/x", "num_speculative_tokens": 2}}, "expand ~"),
    "overlapping schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 4, 4], [4, 8, 0]]}},
        rf"m\.{SPECULATION}\.num_speculative_tokens_per_batch_size: .*non-overlapping",
    ),
    "schedule as text": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": "1-4:4"}},
        r"num_speculative_tokens_per_batch_size: is no list, but '1-4:4'; it is a list of \[first, last, tokens\]",
    ),
    "entry of a schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 2, 4], [3, "8", 0]]}},
        r"has the entry \[3, '8', 0\], which is not three integers",
    ),
    "short entry of a schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 8]]}},
        r"has the entry \[1, 8\], which is not three integers",
    ),
    "empty schedule": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": []}},
        r"num_speculative_tokens_per_batch_size: .*must not be empty",
    ),
    "schedule without its most tokens": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens_per_batch_size": [[1, 8, 2]]}},
        rf"m\.{SPECULATION}\.num_speculative_tokens: is required",
    ),
    "method of speculation that is no name": (
        {"speculative_config": {**NGRAM, "method": ["ngram"]}},
        rf"m\.{SPECULATION}\.method: must be a name, not \['ngram'\]; it has .*ngram",
    ),
    "draft model that is no name": (
        {"speculative_config": {"model": 5, "num_speculative_tokens": 2}},
        rf"m\.{SPECULATION}\.model: must be a folder or a hub id, not 5",
    ),
    "negative tokens of speculation": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens": -1}},
        rf"m\.{SPECULATION}: vLLM refuses it: num_speculative_tokens: Input should be greater than 0",
    ),
    "field with another name in vLLM's class": (
        {"kv_cache_dtype": "fp9"},
        r"m\.options\.kv_cache_dtype: vLLM refuses it: .*'fp8'",
    ),
    "field of a mapping": (
        {"attention_config": {"flash_attn_versoin": 3}},
        r"m\.options\.attention_config: vLLM refuses it: .*flash_attn_versoin",
    ),
    "field of the settings of structures": (
        {"structured_outputs_config": {"backnd": "guidance"}},
        r"m\.options\.structured_outputs_config: vLLM refuses it: .*backnd",
    ),
    "another order of jobs": (
        {"scheduling_policy": "fcfs"},
        r"m\.options\.scheduling_policy: must not be 'fcfs', because jobs have priorities; omit it",
    ),
    "model that generates no text": (
        {"runner": "pooling"},
        r"m\.options\.runner: must not be 'pooling', because a worker generates text; omit it",
    ),
    "unknown loader": (
        {"load_format": "safetensor"},
        r"m\.options\.load_format: 'safetensor' cannot be used: .*not supported",
    ),
    "missing tokenizer": ({"tokenizer": "/models/none"}, r"m\.options\.tokenizer: '/models/none' cannot be used: "),
    "unknown executor": (
        {"distributed_executor_backend": "no.such.Executor"},
        r"m\.options\.distributed_executor_backend: 'no.such.Executor' is not the import path of a class or one of mp,",
    ),
    "executor without its package": (
        {"distributed_executor_backend": "ray"},
        r"m\.options\.distributed_executor_backend: ray needs the Python package ray, which is not installed",
    ),
    "unknown class": (
        {"scheduler_cls": "vllm.NoScheduler"},
        r"m\.options\.scheduler_cls: 'vllm.NoScheduler' is not the import path of a class: ",
    ),
    "option in words": ({"enable_sleep_mode": True}, r"m\.options\.enable_sleep_mode: vLLM refuses it: Sleep mode is"),
    "type that vLLM does not check": (
        {"compilation_config": "fast"},
        r"m\.options\.compilation_config: vLLM refuses it: .*dictionary",
    ),
    "more drafts than tokens": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens": CONTEXT}},
        rf"m\.{SPECULATION}\.num_speculative_tokens: is {CONTEXT}, and a request has at most {CONTEXT} tokens",
    ),
    "cache over the machine's memory": (
        {"kv_cache_memory_bytes": 1 << 50},
        r"m\.options\.kv_cache_memory_bytes: needs \d+ GB, and the device has \d+ GB; set it to less than \d+",
    ),
    "schedule over the limit": (
        {"speculative_config": {**NGRAM, "num_speculative_tokens_per_batch_size": [[1, 8, 6]]}},
        r"has 6 tokens, more than num_speculative_tokens \(4\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, pattern = REFUSED[name]
    message = refusal(model(**options))
    assert re.search(pattern, message, re.DOTALL), message
    assert message.startswith("models.yaml: m.options.")


def test_all_problems_of_the_options_are_reported_together() -> None:
    message = refusal(model(quantization="none", attention_backend="none", max_num_seqz=1))
    assert [line.split(":")[1].strip() for line in message.splitlines()] == [
        f"m.options.{name}" for name in ("max_num_seqz", "quantization", "attention_backend")
    ]


def test_a_folder_without_a_model_does_not_draft(tmp_path: Path) -> None:
    message = refusal(model(speculative_config={"model": str(tmp_path), "num_speculative_tokens": 2}))
    assert f"{tmp_path} has no config.json" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/models/none", "there is no folder /models/none; name a folder, a hub id or bundled:NAME"),
        ("~/model", "~/model: write the whole path; vLLM does not expand ~"),
        (".", "has no config.json, so it is no model"),
    ],
)
def test_a_path_without_a_model_is_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = refusal(model().model_copy(update={"model": source}))
    assert found.startswith("models.yaml: m.model: ")
    assert found.endswith(message)


def test_the_option_of_an_error_that_names_none_is_the_one_of_a_wrong_type() -> None:
    from workers.engines.vllm.checks.refusal import refusal as problems

    options = {"seed": "x", "max_num_seqs": 8, "trust_remote_code": False}
    (problem,) = problems(options, AttributeError("'str' object has no attribute 'y'"))
    assert problem.field == "options.seed"
    assert problem.message.startswith("vLLM does not accept 'x': Input should be a valid integer")
    assert problems({"seed": 1}, KeyError()) == [("options", "vLLM refuses it: KeyError")]


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.engines.vllm.checks import parallelism

    platform = SimpleNamespace(is_cpu=lambda: False, device_count=lambda: 2)
    monkeypatch.setattr(parallelism, "current_platform", platform)
    options = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    (problem,) = parallelism.too_few_devices(options)
    assert problem.message == "needs 4 GPUs, and this machine has 2; use at most 2"
    (problem,) = parallelism.too_few_devices({"data_parallel_size": 4, "tensor_parallel_size": 2})
    assert problem == ("options.data_parallel_size", "needs 8 GPUs, and this machine has 2; use at most 2")
    assert not list(parallelism.too_few_devices({"data_parallel_size": 4, "data_parallel_size_local": 1}))
    assert not list(parallelism.too_few_devices({"tensor_parallel_size": 2}))
    assert not list(parallelism.too_few_devices({**options, "distributed_executor_backend": "ray"}))


def test_a_platform_that_lists_its_methods_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    from workers.engines.vllm.checks.quantization import unknown_method

    monkeypatch.setattr(type(current_platform), "supported_quantization", ["gptq"])
    (problem,) = unknown_method({"quantization": "fp8"})
    assert problem.message == "fp8 quantization is currently not supported in cpu. It has gptq"
    assert not list(unknown_method({"quantization": "gptq"}))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.engines.vllm.checks import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    (problem,) = quantization.unknown_method({"quantization": "torchao"})
    assert "torchao needs the Python package torchao, which is not installed" in problem.message


@pytest.mark.parametrize(("bits", "runs"), [(4, True), (8, False)])
def test_the_kernels_of_a_checkpoints_format_are_looked_up(tmp_path: Path, bits: int, runs: bool) -> None:
    from workers.engines.vllm.plan import make_plan
    from workers.engines.vllm.report import report

    quantization = {"quant_method": "gptq", "bits": bits, "group_size": 64, "desc_act": False, "sym": True}
    folder = with_config(tmp_path, quantization_config=quantization)
    chosen = model(dtype="bfloat16").model_copy(update={"model": str(folder)})
    if runs:
        assert report(make_plan(chosen))["quantization"] == {"method": "auto_gptq", "from": "checkpoint"}
    else:
        assert "m.options.quantization: auto_gptq does not run on a CPU (" in refusal(chosen)


def test_an_online_method_that_runs_on_a_cpu_is_accepted() -> None:
    from workers.engines.vllm.plan import make_plan
    from workers.engines.vllm.report import report

    described = report(make_plan(model(quantization="fp8_per_channel", dtype="bfloat16")))
    assert described["quantization"] == {"method": "fp8_per_channel", "from": "online"}


def with_config(folder: Path, **fields: Any) -> Path:
    """A folder with the bundled model's files, except its weights, and other values in its config.json."""
    for file in Path(SMOLLM2.model).iterdir():
        if not file.name.endswith(".safetensors"):
            (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


class TestReport:
    def test_values_are_those_that_the_engine_uses(self) -> None:
        from workers.engines.vllm.plan import make_plan
        from workers.engines.vllm.report import labels, report

        schedule = [[1, 2, 4], [3, 8, 0]]
        chosen = model(speculative_config={**NGRAM, "num_speculative_tokens_per_batch_size": schedule})
        plan = make_plan(chosen)
        described = report(plan)
        assert json.loads(json.dumps(described)) == described
        assert described["dtype"] == "float32"
        assert described["quantization"] is None
        assert described["attention_backend"] == "CPU_ATTN"
        assert described["start"] == "fast"
        assert (described["context"], described["slots"]) == (CONTEXT, 8)
        # 3 heads of 64 in 30 layers, keys and values of 4 bytes: 46,080 bytes a token, in blocks of 128 tokens.
        blocks = (1 << 28) // (46_080 * 128)
        assert described["kv_cache"] == {
            "dtype": "float32",
            "block_tokens": 128,
            "block_bytes": 46_080 * 128,
            "blocks": blocks,
            "tokens": blocks * 128,
        }
        assert described["speculation"] == {
            "method": "ngram",
            "tokens": 4,
            "tokens_per_batch_size": schedule,
            "draft": None,
        }
        assert described["fingerprint"] == chosen.fingerprint
        assert labels(plan) == ("float32", "none", "CPU_ATTN", "ngram", "fast")

    def test_what_only_profiling_tells_is_said_so(self) -> None:
        from workers.engines.vllm.plan import make_plan
        from workers.engines.vllm.report import AFTER_PROFILING, report

        cache = report(make_plan(model(kv_cache_memory_bytes=None)))["kv_cache"]
        assert (cache["blocks"], cache["tokens"], cache["note"]) == (None, None, AFTER_PROFILING)

    def test_compiled_code_is_kept_in_the_cache_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from workers.engines.vllm.plan import make_plan
        from workers.engines.vllm.report import report
        from workers.engines.vllm.start_mode import start_options

        # The last one is set by an eager engine of this process.
        for name in ("TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "TORCH_COMPILE_DISABLE"):
            monkeypatch.setenv(name, "")  # so that it is restored
            monkeypatch.delenv(name)
        monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
        compiled = model(start="compiled")
        assert start_options(compiled) == {"enforce_eager": False}
        assert start_options(model(start="fast")) == {"enforce_eager": True}
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{tmp_path}/compiled/torchinductor"
        assert os.environ["VLLM_CACHE_ROOT"] == f"{tmp_path}/compiled/vllm"
        described = report(make_plan(compiled))
        assert described["start"] == "compiled"
        assert described["fingerprint"] != report(make_plan(model(start="fast")))["fingerprint"]
