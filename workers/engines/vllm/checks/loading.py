"""Folders, files and loaders that options name. vLLM reads most of them only when the engine's process starts.

Each is looked up here as vLLM does it later, and only if the options name it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.platforms import current_platform

from workers.engines.vllm.checks.problem import Problem, reason_of

logger = logging.getLogger(__name__)

# Files that describe a model: those of Hugging Face, and of Mistral.
CONFIGURATIONS = ("config.json", "params.json")
# Options that are a folder or the id of a repository, what the folder must have, and words that stand for neither.
_FOLDERS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "tokenizer": ((), ()),
    "hf_config_path": (CONFIGURATIONS, ()),
    "generation_config": (("generation_config.json", "config.json"), ("auto", "vllm")),
}
# Options that are a file, or a folder of this machine.
_FILES = ("reasoning_parser_plugin", "log_config_file")
_OWN_FOLDERS = ("allowed_local_media_path",)
# Options about a repository, without effect if the files are in a folder of this machine.
_OF_A_REPOSITORY = ("revision", "tokenizer_revision", "download_dir")
# Options that may name another repository.
_OTHER_REPOSITORIES = ("speculative_config", "hf_config_path", "generation_config")


def path_problem(name: str, files: Sequence[str] = ()) -> str | None:
    """What is wrong with the path of a folder that has one of these files. None for ids of repositories: vLLM looks
    them up.
    """
    path = Path(name)
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if "://" in name or not (is_path or path.exists()):
        return None
    if name.startswith("~"):
        return f"{name}: write the whole path; vLLM does not expand ~"
    if not path.exists():
        return f"there is no folder {path.absolute()}"
    if path.is_dir() and files and not any((path / file).is_file() for file in files):
        return f"{path.absolute()} has no {files[0]}"
    return None


def model_problem(name: str, files: Sequence[str], *, instead: str) -> str | None:
    """As `path_problem`, of a folder with a model, and what follows from it. `instead`: what to do without a folder."""
    problem = path_problem(name, files)
    if problem is None or name.startswith("~"):
        return problem
    return f"{problem}, so it is no model" if Path(name).exists() else f"{problem}; {instead}"


def no_model(source: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    """A path without a model. Names of the hub are looked up by vLLM."""
    files = () if "hf_config_path" in options else CONFIGURATIONS
    problem = model_problem(source, files, instead="name a folder, a hub id or bundled:NAME")
    if problem is not None:
        yield Problem("model", problem)


def missing_files(options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that name a file or a folder that is not there."""
    for name, (files, words) in _FOLDERS.items():
        value = options.get(name)
        if isinstance(value, str) and value not in words and (problem := path_problem(value, files)) is not None:
            others = "".join(f", {word}" for word in words)
            yield Problem(f"options.{name}", f"{problem}; name a folder, a hub id{others}, or omit it")
    for names, exists, kind in ((_FILES, Path.is_file, "file"), (_OWN_FOLDERS, Path.is_dir, "folder")):
        for name in names:
            value = options.get(name)
            if isinstance(value, str) and value and not exists(Path(value)):
                yield Problem(f"options.{name}", f"there is no {kind} {Path(value).absolute()}; name one, or omit it")


def no_repository(source: str, options: Mapping[str, Any]) -> Iterator[Problem]:
    """Options about a repository of a model that is a folder of this machine: vLLM ignores them.

    It uses them for what other options name.
    """
    if any(options.get(name) is not None for name in _OTHER_REPOSITORIES):
        return
    for name in _OF_A_REPOSITORY:
        of = options.get("tokenizer", source) if name == "tokenizer_revision" else source
        if options.get(name) is not None and isinstance(of, str) and Path(of).is_dir():
            what = "the tokenizer" if name == "tokenizer_revision" else "the model"
            yield Problem(f"options.{name}", f"has no effect, because {what} is the folder {of}; omit it")


def cannot_load(options: Mapping[str, Any], config: VllmConfig) -> Iterator[Problem]:
    """What vLLM would find out after the start of the engine's process, or after it has read the weights."""
    for names, look_up in _LOOKED_UP.items():
        named = [name for name in names if options.get(name) is not None]
        if not named:
            continue
        try:
            look_up(config)
        except Exception as error:
            reason = reason_of(error) or type(error).__name__
            # A mapping has names of its own, which the error mentions; otherwise the first option decides.
            name = next((name for name in named if name in reason), named[0])
            yield Problem(f"options.{name}", f"{options[name]!r:.100} cannot be used: {reason:.400}")


def _loader(config: VllmConfig) -> object:
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    loader = get_model_loader(config.load_config)
    source = config.model_config.model
    if isinstance(loader, DefaultModelLoader) and Path(source).is_dir():
        # Lists the files of the format. Other versions of vLLM may have other parameters.
        with suppress(AttributeError, TypeError):
            loader._prepare_weights(source, None, None, fall_back_to_pt=True, allow_patterns_overrides=None)
    return loader


def _tokenizer(config: VllmConfig) -> object:
    from vllm.tokenizers import cached_tokenizer_from_config

    return cached_tokenizer_from_config(config.model_config)


def _overrides(config: VllmConfig) -> object:
    """What the layers of most models compute first from their configuration, as their code does it."""
    from vllm.model_executor.layers import rotary_embedding

    model, text = config.model_config, config.model_config.hf_text_config
    heads = model.get_num_attention_heads(config.parallel_config)
    of_keys = model.get_num_kv_heads(config.parallel_config)
    if of_keys and heads % of_keys:
        raise ValueError(f"the number of attention heads ({heads}) is no multiple of that of keys ({of_keys})")
    rope = getattr(text, "rope_parameters", None)
    # None, or one for each kind of layer; or the model computes it in a way of its own.
    if not isinstance(rope, dict) or "rope_type" not in rope or model.use_mla:
        return None
    size, positions = model.get_head_size(), getattr(text, "max_position_embeddings", model.max_model_len)
    # vLLM keeps what it has computed; an engine that is forked from this process must not get it.
    kept = dict(rotary_embedding._ROPE_DICT)
    try:
        with set_current_vllm_config(config), torch.device("meta"):
            rotary_embedding.get_rope(size, max_position=positions, rope_parameters=rope, dtype=model.dtype)
    except KeyError as error:
        raise ValueError(f"rope_parameters of the type {rope['rope_type']} need {error.args[0]}") from error
    except ValueError as error:
        if "Unknown RoPE" in str(error):
            raise
    except Exception:  # the model may call it with other sizes
        logger.debug("rope_parameters cannot be checked", exc_info=True)
    finally:
        rotary_embedding._ROPE_DICT.clear()
        rotary_embedding._ROPE_DICT.update(kept)
    return None


def _operators(config: VllmConfig) -> object:
    try:
        from vllm.ir.op import IrOp
    except ImportError:  # another version of vLLM
        return None
    current_platform.import_ir_kernels()
    for name, providers in asdict(config.kernel_config.ir_op_priority).items():
        known = IrOp.registry[name].impls
        if unknown := [provider for provider in providers if provider not in known]:
            raise ValueError(f"{name} has no {', '.join(unknown)} here; it has {', '.join(sorted(known))}")
    return None


_LOOKED_UP: Mapping[tuple[str, ...], Callable[[VllmConfig], object]] = {
    ("load_format", "model_loader_extra_config"): _loader,
    ("tokenizer", "tokenizer_mode", "tokenizer_revision"): _tokenizer,
    ("hf_overrides",): _overrides,
    ("ir_op_priority",): _operators,
}
