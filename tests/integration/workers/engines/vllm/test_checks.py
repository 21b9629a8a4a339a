"""Options that cannot work here are refused before the model is loaded, by asking the installed vLLM."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from tests.integration.workers.engines.vllm.refused import NGRAM, REFUSED
from tests.support.real_engine import CONTEXT, SMOLLM2

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


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
    ("draft", "options", "field", "pattern"),
    [
        (
            {},
            {"quantization": "awq"},
            ".quantization",
            "awq cannot be used: Cannot find the config file for awq; omit it",
        ),
        (
            {"hidden_size": 288, "head_dim": 32},
            {"method": "eagle"},
            ".model",
            "was made for a hidden size of 288, and the model's is 576; use one made for it",
        ),
        ({"vocab_size": 1000}, {}, "", "vLLM refuses it: .*vocab"),
    ],
    ids=["quantization", "hidden size", "vocabulary"],
)
def test_a_draft_model_that_does_not_fit(
    tmp_path: Path, draft: dict[str, Any], options: dict[str, Any], field: str, pattern: str
) -> None:
    folder = with_config(tmp_path, **draft)
    message = refusal(model(speculative_config={"model": str(folder), "num_speculative_tokens": 2, **options}))
    assert re.match(rf"models.yaml: m.options.speculative_config{field}: {pattern}", message), message


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
    (problem,) = problems(options, AttributeError("'str' object has no attribute 'y'"), lambda _: False)
    assert problem.field == "options.seed"
    assert problem.message.startswith("vLLM does not accept 'x': Input should be a valid integer")
    assert problems({"seed": 1}, KeyError(), lambda _: False) == [("options", "vLLM refuses it: KeyError")]


def test_the_option_of_an_error_that_names_none_is_the_one_without_which_the_others_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from workers.engines.vllm.checks import refusal as module

    tried: list[Mapping[str, Any]] = []

    def accepts(options: Mapping[str, Any]) -> bool:
        tried.append(options)
        return "seed" not in options

    options = {"max_num_seqs": 8, "seed": 1, "enforce_eager": True}
    assert module.refusal(options, KeyError("x"), accepts) == [("options.seed", "vLLM refuses it: 'x'")]
    assert tried == [{"seed": 1, "enforce_eager": True}, {"max_num_seqs": 8, "enforce_eager": True}]
    monkeypatch.setattr(module, "SEARCH_S", -1)
    assert module.refusal(options, KeyError("x"), accepts) == [("options", "vLLM refuses it: 'x'")]


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.engines.vllm.checks import parallelism

    platform = SimpleNamespace(is_cpu=lambda: False, device_count=lambda: 2)
    monkeypatch.setattr(parallelism, "current_platform", platform)
    options = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    (problem,) = parallelism.too_few_devices(options)
    assert problem.message == "needs 4 GPUs, and this machine has 2; use at most 2"
    (problem,) = parallelism.too_few_devices({"data_parallel_size": 4, "tensor_parallel_size": 2})
    instead = "use at most 2, and start more workers instead"
    assert problem == ("options.data_parallel_size", f"needs 8 GPUs, and this machine has 2; {instead}")
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


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}


@pytest.mark.parametrize(
    ("quantization", "options", "pattern"),
    [
        (FP8, {}, r"options\.quantization: fp8 does not run on a CPU \(.+\); these do: fp8_per_channel, .*GPTQ"),
        (GPTQ, {"quantization": "awq"}, r"options\.quantization: vLLM refuses it: .*\(gptq\) does not match .*\(awq\)"),
        (
            GPTQ,
            {"dtype": "float32"},
            r"options\.dtype: the model's files are quantized with auto_gptq, which does not run in float32; set"
            r" options\.dtype to float16 or bfloat16",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {},
            r"model: its files are quantized with bitsandbytes, which this build of vLLM \S+ does not have; use files"
            r" in another format: it has .*compressed-tensors",
        ),
    ],
    ids=["no kernel", "another method", "dtype", "unknown method"],
)
def test_files_that_cannot_be_used_here(
    tmp_path: Path, quantization: dict[str, Any], options: dict[str, Any], pattern: str
) -> None:
    folder = with_config(tmp_path, quantization_config=quantization)
    chosen = model(**{"dtype": "bfloat16", **options}).model_copy(update={"model": str(folder)})
    message = refusal(chosen)
    assert re.match(rf"models\.yaml: m\.{pattern}", message), message


def test_files_for_which_this_cpu_has_no_kernel(tmp_path: Path) -> None:
    """vLLM's build for CPUs without AVX-512 has none for AWQ, and finds it out with the first request."""
    import torch

    from workers.engines.vllm.plan import make_plan

    folder = with_config(tmp_path, quantization_config=AWQ)
    chosen = model(dtype="bfloat16").model_copy(update={"model": str(folder)})
    if torch.cpu._is_avx512_supported():
        make_plan(chosen)
    else:
        assert "awq does not run on a CPU (this build has no cpu_gemm_wna16); these do: " in refusal(chosen)


def test_an_online_method_that_runs_on_a_cpu_is_accepted() -> None:
    from workers.engines.vllm.plan import make_plan
    from workers.engines.vllm.report import report

    described = report(make_plan(model(quantization="fp8_per_channel", dtype="bfloat16")))
    assert described["quantization"] == {"method": "fp8_per_channel", "from": "online"}


@pytest.mark.parametrize(
    "options",
    [
        {"max_cudagraph_capture_size": 0, "cudagraph_capture_sizes": []},
        {"revision": "main", "generation_config": "vllm"},
        {"hf_overrides": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}},
    ],
    ids=["switched off on a CPU", "a revision beside another source", "other positions"],
)
def test_options_that_can_work_are_accepted(options: dict[str, Any]) -> None:
    from vllm.model_executor.layers import rotary_embedding

    from workers.engines.vllm.plan import make_plan

    before = dict(rotary_embedding._ROPE_DICT)
    make_plan(model(**options))
    assert before == rotary_embedding._ROPE_DICT, "a forked engine would take a layer that was made for the check"


def test_hidden_states_are_for_a_connector() -> None:
    from workers.engines.vllm.checks.speculation import speculation_problems

    drafts: dict[str, Any] = {"speculative_config": {"method": "extract_hidden_states", "num_speculative_tokens": 1}}
    assert list(speculation_problems(drafts))
    assert list(speculation_problems({**drafts, "kv_transfer_config": {"kv_connector": "X"}})) == []


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

        # A share of the memory that is free on any machine.
        cache = report(make_plan(model(kv_cache_memory_bytes=None, gpu_memory_utilization=0.1)))["kv_cache"]
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
