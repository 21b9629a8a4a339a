"""Quantization: whether the method exists, runs on this device and in this dtype, and quantizes anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.model_loader.weight_utils import get_quant_config
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from workers.engines.vllm.checks.problem import Problem, did_you_mean, reason_of, vllm_name
from workers.engines.vllm.executor import EXECUTOR

FIELD = "options.quantization"
# Packages that vLLM imports only while it loads the weights.
_PACKAGES = {"bitsandbytes": "bitsandbytes", "humming": "humming", "torchao": "torchao"}
_LEFT_OUT = re.compile(r"\w+::(\w+)\(\) expected at most 0 argument|_OpNamespace.* has no attribute '(\w+)'")
_UNKNOWN_METHOD = re.compile(r"Unknown quantization method: (\w[\w-]*)")
MAX_REASON = 200
# Features of the layer that runs for a trial.
TRIAL_SIZE = 512


def online_methods() -> tuple[str, ...]:
    """The methods that quantize a model while it is loaded, without a quantized checkpoint. vLLM 0.26 has none."""
    try:
        from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES
    except ImportError:
        return ()
    return tuple(ONLINE_QUANT_SHORTHAND_NAMES)


def unknown_method(options: Mapping[str, Any]) -> Iterator[Problem]:
    """A method that this build of vLLM, or this device, does not have."""
    method = options.get("quantization")
    if method is None:
        return
    if method not in QUANTIZATION_METHODS:
        hint = did_you_mean(method, QUANTIZATION_METHODS)
        yield Problem(FIELD, f"this build of {vllm_name()} has no method {method!r}; {hint}")
        return
    try:
        current_platform.verify_quantization(method)
    except ValueError as error:
        usable = ", ".join(current_platform.supported_quantization)
        yield Problem(FIELD, f"{reason_of(error)} It has {usable}")
    package = _PACKAGES.get(method)
    if package is not None and find_spec(package) is None:
        yield Problem(FIELD, f"{method} needs the Python package {package}, which is not installed")


def checkpoint_problem(arguments: AsyncEngineArgs) -> Problem | None:
    """Why vLLM refuses the method for this model: its files or its dtype. None if the cause is another one."""
    named = arguments.quantization is not None
    try:
        model = arguments.create_model_config()
    except Exception as error:  # about something else, unless the files have a method that vLLM does not know
        unknown = None if named else _UNKNOWN_METHOD.search(reason_of(error))
        if unknown is None:
            return None
        return Problem(
            "model",
            f"its files are quantized with {unknown[1]}, which this build of {vllm_name()} does not have; use files in"
            f" another format: it has {', '.join(sorted(QUANTIZATION_METHODS))}",
        )
    if model.quantization is None:
        return None
    if arguments.quantization == "online" and getattr(arguments, "quantization_config", None) is None:
        return Problem(FIELD, "online needs options.quantization_config, which names the methods of the layers")
    try:
        method = get_quant_config(model, arguments.create_load_config())
    except Exception as error:
        if _is_quantized(model) or model.quantization in online_methods():
            return Problem(FIELD, reason_of(error))
        plain = replace(arguments, quantization=None).create_engine_config()
        usable = _usable(plain)
        return Problem(
            FIELD,
            f"the model's files are not quantized with {model.quantization}; name a model whose files are, or"
            + (f" use {' or '.join(usable)}, which quantizes while loading" if usable else " omit the option"),
        )
    supported = [_name(dtype) for dtype in method.get_supported_act_dtypes()]
    if _name(model.dtype) not in supported:
        return Problem(
            FIELD if named else "options.dtype",
            (arguments.quantization if named else f"the model's files are quantized with {model.quantization}, which")
            + f" does not run in {_name(model.dtype)}; set options.dtype to {' or '.join(supported)}",
        )
    return None


def is_online(config: VllmConfig) -> bool:
    """Whether the model is quantized while it is loaded, because its files are not."""
    return config.model_config.quantization is not None and not _is_quantized(config.model_config)


def cannot_quantize(config: VllmConfig) -> Iterator[Problem]:
    """A method that leaves the model as it is, or one that does not run on this device.

    vLLM accepts methods for the experts of a mixture of experts for other models too, and ignores them. Methods without
    a kernel for a CPU are found out here, as vLLM does while it loads the model; on a GPU vLLM compares the method with
    the GPU's compute capability before.
    """
    if config.quant_config is None:
        if getattr(config.model_config, "quantization_config", None) is not None:
            yield Problem(
                "options.quantization_config", "has no effect without options.quantization; set that to online"
            )
        return
    model, online = config.model_config, is_online(config)
    # Options by layer may leave out the one that is tried.
    whole = getattr(model, "quantization_config", None) is None or model.quantization != "online"
    if online and whole and not model.is_moe and not _quantizes_linear_layers(config):
        usable = _usable(config)
        instead = f"use {' or '.join(usable)}" if usable else "use a model whose files are quantized"
        yield Problem(
            FIELD,
            f"{model.quantization} quantizes only the experts of mixture-of-experts models, and this model has none:"
            f" nothing would be quantized; {instead}, or omit the option",
        )
    elif current_platform.is_cpu() and (reason := layer_problem(config, config.quant_config)) is not None:
        instead = ", ".join([*_usable(config), _formats()])
        yield Problem(FIELD, f"{model.quantization} does not run on a CPU ({reason}); these do: {instead}")


def _quantizes_linear_layers(config: VllmConfig) -> bool:
    try:
        with _building(config), torch.device("meta"):
            return not isinstance(_layer(config.quant_config, *_sizes(config)).quant_method, UnquantizedLinearMethod)
    except (ValueError, RuntimeError, ImportError):
        return True  # it tried


def layer_problem(config: VllmConfig, quantization: Any) -> str | None:
    """Why a linear layer cannot be quantized with a `QuantizationConfig`; None if it can.

    A layer of the model's size is created on torch's device `meta`, which allocates no memory: vLLM then chooses a
    kernel. A small layer also runs, because some kernels are looked up only then.
    """
    sizes = _sizes(config)
    _import_kernels(config)
    try:
        with _building(config):
            with torch.device("meta"):
                _layer(quantization, *sizes)
            _quantize_and_run(_layer(quantization, *(min(size, TRIAL_SIZE) for size in sizes)))
    except (ValueError, RuntimeError, ImportError, AttributeError) as error:
        return _kernel_reason(reason_of(error))
    return None


def _import_kernels(config: VllmConfig) -> None:
    """Load the kernels that the engine will have, also Headrace's own if it uses them."""
    current_platform.import_kernels()
    if config.parallel_config.distributed_executor_backend == EXECUTOR:
        # Imported here: it extends classes that only the checks of a quantized model need.
        from workers.engines.vllm import int4_kernel

        int4_kernel.register()


def _formats() -> str:
    """The formats of quantized files that run on this CPU."""
    if hasattr(torch.ops._C, "cpu_gemm_wna16"):
        return "files in the formats AWQ, GPTQ and compressed-tensors"
    return "files in the formats GPTQ (4 bits, symmetric) and compressed-tensors"


def _kernel_reason(reason: str) -> str:
    """vLLM's reason in short. For a function that the build leaves out it has torch's only, about something else."""
    if (missing := _LEFT_OUT.search(reason)) is not None:
        return f"this build has no {missing[1] or missing[2]}"
    reason = reason.replace("Reasons:", "").replace("..", ".").strip(" .")
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…"


def _layer(quantization: Any, inputs: int, outputs: int) -> ReplicatedLinear:
    prefix = "model.layers.0.self_attn.q_proj"
    return ReplicatedLinear(inputs, outputs, bias=False, quant_config=quantization, prefix=prefix, disable_tp=True)


def _quantize_and_run(layer: ReplicatedLinear) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        if parameter.is_meta:  # online methods create the weights when they are loaded
            values = torch.ones(parameter.shape, dtype=parameter.dtype)
            layer.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
        elif parameter.is_floating_point():
            parameter.data.copy_(torch.ones(parameter.shape))
        else:
            parameter.data.zero_()
    layer.quant_method.process_weights_after_loading(layer)
    layer.quant_method.apply(layer, torch.ones(1, layer.input_size))


def _sizes(config: VllmConfig) -> tuple[int, int]:
    """The inputs and outputs of the projection of an attention layer's queries."""
    model = config.model_config
    return model.get_hidden_size(), model.get_num_attention_heads(config.parallel_config) * model.get_head_size()


@contextmanager
def _building(config: VllmConfig) -> Iterator[None]:
    """What vLLM's layers need to be created, with a stand-in for the group of tensor parallel processes."""
    before = parallel_state._TP
    parallel_state._TP = SimpleNamespace(rank_in_group=0, world_size=1)
    try:
        with set_current_vllm_config(config), set_default_torch_dtype(config.model_config.dtype):
            yield
    finally:
        parallel_state._TP = before


def _usable(config: VllmConfig) -> list[str]:
    """The online methods that can quantize this model here."""
    return [name for name in online_methods() if _online_problem(config, name) is None]


def _online_problem(config: VllmConfig, method: str) -> str | None:
    """Why an online method cannot quantize the linear layers of this model here."""
    from vllm.config.quantization import resolve_quantization_config
    from vllm.model_executor.layers.quantization.online.base import OnlineQuantizationConfig

    arguments = resolve_quantization_config(method, None)
    if arguments is None or arguments.linear is None:
        return "no linear layers"
    return layer_problem(config, OnlineQuantizationConfig(arguments))


def _is_quantized(model: Any) -> bool:
    """Whether the model's files are quantized."""
    return getattr(model.hf_config, "quantization_config", None) is not None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
