"""What an engine will run with: vLLM's configuration of a model, made and checked before any weight is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from shared.config.models.vllm import VllmModel
from shared.domain.errors import HeadraceError
from workers.engines.vllm.adapters import adapter_options
from workers.engines.vllm.checks.attention import backend_problem, cache_problem, unknown_backend
from workers.engines.vllm.checks.honored import ignored_options, not_compiled
from workers.engines.vllm.checks.imports import missing_packages, unknown_classes
from workers.engines.vllm.checks.loading import cannot_load, missing_files, no_model, no_repository
from workers.engines.vllm.checks.memory import (
    cache_too_large,
    cache_too_small,
    of_other_layers,
    too_little_memory,
)
from workers.engines.vllm.checks.names import unknown_options, unknown_words
from workers.engines.vllm.checks.parallelism import too_few_devices
from workers.engines.vllm.checks.problem import Problem, refuse
from workers.engines.vllm.checks.quantization import cannot_quantize, checkpoint_problem, unknown_method
from workers.engines.vllm.checks.refusal import refusal
from workers.engines.vllm.checks.required import for_a_gpu, unusable_values
from workers.engines.vllm.checks.speculation import speculation_problems, too_many_drafts, unfit_draft
from workers.engines.vllm.dtype import choose_dtype
from workers.engines.vllm.executor import cpu_options
from workers.engines.vllm.request import check_parsers
from workers.engines.vllm.scheduler import scheduler_options
from workers.engines.vllm.start_mode import start_options
from workers.engines.vllm.structure_backend import structured_output_options

logger = logging.getLogger(__name__)

# Checks of the options alone.
_OF_OPTIONS: tuple[Callable[[Mapping[str, Any]], Iterator[Problem]], ...] = (
    unknown_options,
    unusable_values,
    for_a_gpu,
    unknown_method,
    unknown_backend,
    unknown_classes,
    missing_packages,
    missing_files,
    too_few_devices,
    speculation_problems,
)
# Checks of vLLM's configuration.
_OF_CONFIG: tuple[Callable[[VllmConfig], Iterator[Problem]], ...] = (
    cannot_quantize,
    backend_problem,
    cache_problem,
    cache_too_small,
    cache_too_large,
    too_little_memory,
    of_other_layers,
    too_many_drafts,
    unfit_draft,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked model with the arguments of its engine and what vLLM makes of them."""

    model: VllmModel
    arguments: AsyncEngineArgs
    config: VllmConfig

    @property
    def dtype(self) -> str:
        """The dtype that "auto" and other names stand for."""
        return str(self.config.model_config.dtype).removeprefix("torch.")

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model, with the dtype used."""
        return self.model.with_dtype(self.dtype).fingerprint


def make_plan(model: VllmModel, adapters: Sequence[VllmModel] = ()) -> Plan:
    """Check a model's options and create vLLM's configuration. Takes seconds, and reads no weights.

    `adapters`: those of the model, with their files (`workers.engines.vllm.adapters.located`).

    Raises:
        InvalidRequest: options that cannot work here, one line each.
    """
    problems = [*no_model(model.source, model.options), *no_repository(model.source, model.options)]
    refuse(model, [*problems, *(problem for check in _OF_OPTIONS for problem in check(model.options))])
    check_parsers(model)
    arguments: AsyncEngineArgs | None = None
    try:
        arguments = _arguments(model, adapters)
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    except HeadraceError:
        raise
    except Exception as error:  # vLLM uses values before it checks their types, so it raises any
        logger.debug("model=%s vLLM refuses its options", model.name, exc_info=True)
        refuse(model, _problems(model, adapters, arguments, error))
        raise
    problems = [problem for check in _OF_CONFIG for problem in check(config)]
    problems += unknown_words(model.options)
    problems += ignored_options(model.options, config)
    problems += cannot_load(model.options, config)
    problems += not_compiled(model.start, config)
    refuse(model, problems)
    return Plan(model, arguments, config)


def _arguments(model: VllmModel, adapters: Sequence[VllmModel]) -> AsyncEngineArgs:
    return AsyncEngineArgs(model=model.source, **_engine_options(model, adapters))


def _engine_options(model: VllmModel, adapters: Sequence[VllmModel]) -> dict[str, Any]:
    on_cpu = current_platform.is_cpu()
    chosen = {**start_options(model), **model.options}
    options = {
        "max_num_seqs": model.slots,
        "scheduling_policy": "priority",
        "disable_log_stats": True,
        **cpu_options(chosen),
        **scheduler_options(),
        **chosen,
        **adapter_options(model, adapters, on_cpu=on_cpu),
        **structured_output_options(model.options),
        "dtype": choose_dtype(model.options, on_cpu=on_cpu),
    }
    if model.chat.reasoning_parser is not None:
        # A grammar starts at the end of the reasoning, which the engine has to detect.
        options["reasoning_parser"] = model.chat.reasoning_parser
    return options


def _problems(
    model: VllmModel, adapters: Sequence[VllmModel], arguments: AsyncEngineArgs | None, error: Exception
) -> list[Problem]:
    """What vLLM's error about the whole configuration is about."""
    if arguments is not None:
        # It may fail in the same way: the method of quantization is not the problem then.
        with suppress(Exception):
            if (problem := checkpoint_problem(arguments)) is not None:
                return [problem]

    def accepts(options: Mapping[str, Any]) -> bool:
        try:
            other = model.model_copy(update={"options": options})
            _arguments(other, adapters).create_engine_config(UsageContext.ENGINE_CONTEXT)
        except Exception:
            return False
        return True

    return refusal(model.options, error, accepts)
