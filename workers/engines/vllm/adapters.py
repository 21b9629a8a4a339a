"""LoRA adapters of a vLLM engine: their checks at the start, and which of them are loaded.

vLLM loads the adapter of a request in the step that first needs it, and an error there ends the engine. So an adapter
is loaded here before its requests are sent, where an error concerns these only, and what is in use is never evicted:
at most `max_loras` adapters are in use at a time, and of the others the least recently used is evicted.

On a CPU, vLLM's kernels apply the adapter in the last slot to requests without one as well. So the engine gets a slot
more than adapters are loaded: vLLM fills the first free slot, and the last one stays empty.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from vllm.config.lora import MaxLoRARanks
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from shared.config.models.adapters import CONFIG_FILE, TEMPLATE_FILE, WEIGHT_FILES, Adapter, signature
from shared.config.models.vllm import VllmModel
from shared.domain.errors import InvalidRequest
from shared.telemetry.metrics import Metrics
from workers.engines.base import EngineDead, EngineError
from workers.engines.vllm import applied_modules

logger = logging.getLogger(__name__)

# Without options: the most adapters that are in use at a time, each of which takes memory of the device, and the most
# that are kept in the memory of the host.
IN_USE = 8
LOADED = 32
_RANKS = get_args(MaxLoRARanks)
# Modules that a message names.
SHOWN = 3
# Modules whose input, and whose output, has the model's hidden size.
_READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_WRITERS = ("o_proj", "down_proj")


def located(model: VllmModel) -> list[VllmModel]:
    """The adapters of a model with their files, which are downloaded if need be.

    Raises:
        InvalidRequest: an adapter has no folder, or lacks a file.
    """
    return [_located(adapter) for adapter in model.adapters]


def _located(model: VllmModel) -> VllmModel:
    assert model.adapter is not None
    folder = model.adapter.folder or _download(model, model.adapter)
    if not (folder / CONFIG_FILE).is_file():
        raise _invalid(model, f"{folder.absolute()} has no {CONFIG_FILE}; an adapter is a folder that PEFT has saved")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise _invalid(model, f"{folder.absolute()} has no weights; their file is one of {', '.join(WEIGHT_FILES)}")
    # They may have changed since models.yaml was read: the fingerprint is to be that of what is loaded.
    return model.as_adapter(model.name, model.description, model.adapter.at(folder))


def _download(model: VllmModel, adapter: Adapter) -> Path:
    folder = Path(adapter.source).expanduser().absolute()
    if not adapter.may_be_hub_id:
        raise _invalid(model, f"there is no folder {folder}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter.source, allow_patterns=[CONFIG_FILE, TEMPLATE_FILE, *WEIGHT_FILES]))
    except Exception as error:
        raise _invalid(
            model, f"there is no folder {folder}, and {adapter.source} cannot be downloaded from Hugging Face: {error}"
        ) from error


def adapter_options(model: VllmModel, adapters: Sequence[VllmModel], *, on_cpu: bool) -> dict[str, Any]:
    """Engine options for these adapters, derived from them where the model's own `options` do not set them; empty
    without adapters.

    Raises:
        InvalidRequest: the options and an adapter contradict each other, or an adapter's configuration is not valid.
    """
    if not adapters:
        return {}
    options: Mapping[str, Any] = model.options
    if options.get("enable_lora") is False:
        raise InvalidRequest(
            f"{model.place('options.enable_lora')}: must not be false, because {adapters[0].name} and possibly others"
            " are adapters of the model"
        )
    rank, highest = max(((_rank(adapter, base=model), adapter) for adapter in adapters), key=lambda found: found[0])
    limit = options.get("max_lora_rank", _RANKS[-1])
    if rank > limit:
        more = ", or set options.max_lora_rank of its base to more" if "max_lora_rank" in options else ""
        raise _invalid(highest, f"its rank is {rank}, but {limit} is the most; use another adapter{more}")
    in_use = options.get("max_loras") or min(len(adapters), IN_USE)
    loaded = options.get("max_cpu_loras") or max(in_use, min(len(adapters), LOADED))
    return {
        "enable_lora": True,
        "max_loras": in_use + 1 if on_cpu else in_use,
        "max_cpu_loras": in_use + 1 if on_cpu else loaded,
        "max_lora_rank": options.get("max_lora_rank") or next(one for one in _RANKS if one >= rank),
        **_extension(options),
    }


def _extension(options: Mapping[str, Any]) -> dict[str, str]:
    """The option with which vLLM's worker tells what of an adapter it applies. Nodes of Ray may lack the class."""
    own = options.get("worker_extension_cls")
    if not own and options.get("distributed_executor_backend") == "ray":
        return {}
    return {"worker_extension_cls": own or applied_modules.NAME}


def _rank(adapter: VllmModel, base: VllmModel) -> int:
    """The rank that an adapter needs. Logs a warning if it was trained for another model."""
    folder = _adapter(adapter)[1]
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
        rank = max(int(rank) for rank in ranks)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"no rank {error}" if isinstance(error, KeyError) else error
        file = (folder / CONFIG_FILE).absolute()
        raise _invalid(adapter, f"{file} is not a LoRA configuration: {problem}") from error
    trained_for = config.get("base_model_name_or_path")
    if isinstance(trained_for, str) and trained_for and _short(trained_for) != _short(base.model):
        logger.warning(
            "model=%s is an adapter for %s, but its base %s is %s; its answers may be useless",
            adapter.name, trained_for, base.name, base.model,
        )  # fmt: skip
    return rank


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower()


class LoadedAdapters:
    """The adapters that an engine has loaded, and those that its requests use."""

    def __init__(self, llm: AsyncLLM, adapters: Sequence[VllmModel], metrics: Metrics, *, on_cpu: bool) -> None:
        self._llm = llm
        self._metrics = metrics
        self._models = {model.name: model for model in adapters}
        self._requests: dict[str, LoRARequest] = {}
        self._files: dict[str, tuple[Path, object]] = {}
        for number, model in enumerate(adapters, start=1):
            adapter, folder = _adapter(model)
            # vLLM keeps the prefix caches of adapters apart by this name.
            name = f"{model.name}@{adapter.identity}"
            self._requests[model.name] = LoRARequest(name, number, str(folder.absolute()), base_model_name=adapter.base)
            self._files[model.name] = folder, signature(folder)
        config = llm.vllm_config.lora_config
        slots = config.max_loras if config is not None else 0
        self._most_in_use = slots - 1 if on_cpu else slots
        self._most_loaded = self._most_in_use if on_cpu or config is None else config.max_cpu_loras or slots
        # The least recently used first.
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._released = asyncio.Event()
        # In this order requests get their adapters: one that has to wait is not overtaken.
        self._turn = asyncio.Lock()

    async def check(self) -> None:
        """Load each adapter once.

        Raises:
            InvalidRequest: one cannot be loaded, is for a model of another size, or has no weights for a layer of this
                one. vLLM pads smaller weights silently, and leaves out those for other layers.
            EngineDead: the engine has died.
        """
        expected = self._llm.model_config.get_hidden_size()
        for name, (folder, _) in self._files.items():
            found = _hidden_size(folder)
            if found not in (None, expected):
                raise _invalid(
                    self._models[name],
                    f"its weights are for a hidden size of {found}, but that of its base is {expected}",
                )
        for name in self._requests:
            try:
                await self.acquire(name)
            except EngineError as error:
                raise _invalid(self._models[name], str(error)) from error
            try:
                await self._check_applied(name)
            except InvalidRequest:
                await self._unload(name)
                raise
            finally:
                self.release(name)

    async def _check_applied(self, name: str) -> None:
        """Raise `InvalidRequest` if no weights of a loaded adapter are applied, and log a warning if some are not."""
        if self._llm.vllm_config.parallel_config.worker_extension_cls != applied_modules.NAME:
            return  # the options name another class
        try:
            found = await self._llm.collective_rpc(applied_modules.METHOD, args=(self._requests[name].lora_int_id,))
        except EngineDeadError as error:
            raise EngineDead from error
        if None in found:
            return
        # Each process has a part of the layers.
        applied = {module for modules, _ in found for module in modules}
        others = sorted({module for _, modules in found for module in modules} - applied)
        some = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        filtered = self._llm.vllm_config.lora_config.target_modules
        advice = f"; options.lora_target_modules of its base is {', '.join(filtered)}" if filtered else ""
        # Without both, it has weights of other kinds only, such as whole modules.
        if others and not applied:
            raise _invalid(
                self._models[name],
                f"its base has no layers for its weights, so it would answer as its base does; they are for {some}"
                f"{advice}",
            )
        if others:
            logger.warning("model=%s is not applied to %d modules: %s%s", name, len(others), some, advice)

    async def acquire(self, name: str | None) -> LoRARequest | None:
        """Load an adapter for a request, which must `release` it. Waits while `max_loras` others are in use.

        Raises:
            EngineError: the adapter cannot be loaded.
            EngineDead: the engine has died.
        """
        if name is None:
            return None
        async with self._turn:
            while not self._users[name] and len(+self._users) >= self._most_in_use:
                self._released.clear()
                await self._released.wait()
            if name not in self._loaded:
                await self._load(name)
            self._loaded.move_to_end(name)
            self._users[name] += 1
        return self._requests[name]

    def release(self, name: str | None) -> None:
        """End the use of an adapter by a request."""
        if name is not None:
            self._users[name] -= 1
            self._released.set()

    async def _load(self, name: str) -> None:
        label = self._metrics.model_label(name)
        if len(self._loaded) >= self._most_loaded:
            oldest = next(other for other in self._loaded if not self._users[other])
            await self._unload(oldest)
            self._metrics.adapter_evictions.labels(self._metrics.model_label(oldest)).inc()
            logger.info("model=%s evicted, to load %s", oldest, name)
        folder, files = self._files[name]
        try:
            await self._llm.add_lora(self._requests[name])
            _check_unchanged(folder, files)
        except EngineDeadError as error:
            raise EngineDead from error
        except BaseException as error:
            # What was loaded of it must not answer a later request.
            await asyncio.shield(self._unload(name))
            if not isinstance(error, Exception):
                raise
            self._metrics.adapter_loads.labels(label, "failed").inc()
            logger.error("model=%s the adapter cannot be loaded: %s", name, error)
            raise EngineError(f"the adapter {name!r} cannot be loaded: {_reason(error)}") from error
        self._loaded[name] = None
        self._metrics.adapter_loads.labels(label, "loaded").inc()

    async def _unload(self, name: str) -> None:
        self._loaded.pop(name, None)
        try:
            await self._llm.remove_lora(self._requests[name].lora_int_id)
        except EngineDeadError as error:
            raise EngineDead from error


def _adapter(model: VllmModel) -> tuple[Adapter, Path]:
    """What makes the model an adapter, and the folder with its files."""
    assert model.adapter is not None
    assert model.adapter.folder is not None
    return model.adapter, model.adapter.folder


def _hidden_size(folder: Path) -> int | None:
    """The hidden size of the model that an adapter was made for; None if its files do not show it."""
    try:
        with (folder / WEIGHT_FILES[0]).open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            module = name.rpartition(".lora_")[0].rpartition(".")[2]
            if ".lora_A." in name and module in _READERS:
                return int(tensor["shape"][1])
            if ".lora_B." in name and module in _WRITERS:
                return int(tensor["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, MemoryError):
        pass  # vLLM's error says more, if it cannot read it either
    return None


def _check_unchanged(folder: Path, files: object) -> None:
    """Raise an error if an adapter's files are not those that its fingerprint stands for."""
    if signature(folder) != files:
        raise EngineError("its files have changed since the worker started; restart the worker to use them")


def _reason(error: Exception) -> str:
    """The message of an error of the engine, without the name of the method that was called."""
    return str(error).removeprefix("Call to add_lora method failed: ")


def _invalid(adapter: VllmModel, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{adapter.place('adapter')}: {problem}")
