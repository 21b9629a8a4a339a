"""How a request may be answered: from the cache, with a shorter context, with limits. Set by model, key or request.

Where several set the same option, the request's value applies before the key's, and the key's before the model's.
Limits are different: all of them apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.domain.field_types import MAX_MODEL_NAME, MODEL_NAME, contradiction
from shared.domain.log_level import LogLevel, stored_level

MAX_CACHE_TTL_S = 30 * 24 * 3600
MAX_ALLOWED_MODELS = 100


class CacheOptions(BaseModel):
    """The response cache. An answer is stored for `ttl` seconds, and found by requests of the same `scope`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl: int = Field(3600, ge=1, le=MAX_CACHE_TTL_S, description="Seconds for which an answer is stored.")
    scope: Literal["project", "key", "user"] = Field(
        "project", description="Whose requests find the answer: those of the project, of the key, or of the end user."
    )


class ContextOptions(BaseModel):
    """What happens to a conversation that outgrows the context.

    `trigger` and `target` are shares of the room for the prompt: a conversation above `trigger` is cut to `target`, so
    that its beginning stays the same for many turns. `trigger_tokens` is a trigger in tokens, if that is less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["error", "sliding_window", "summarize"] = Field(
        "error",
        description="`error` refuses the request, `sliding_window` drops the oldest turns, and `summarize` replaces"
        " them by a summary.",
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="The model that writes summaries. In a request: the requested model, or one that its entry or the"
        " key names. With `error`, it is for requests that have the strategy `summarize`.",
    )
    trigger: float = Field(0.8, gt=0, le=1)
    target: float = Field(0.4, gt=0, le=1)
    trigger_tokens: int | None = Field(
        None, ge=1, description="Shorten conversations above this many tokens too; the target is lowered likewise."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.target >= self.trigger:
            raise contradiction("target", f"target must be less than trigger={self.trigger}, got {self.target}")
        if self.strategy == "sliding_window" and self.model is not None:
            raise contradiction("model", "model is only for the strategy 'summarize'")
        return self


class TokenLimits(BaseModel):
    """Limits of the tokens of a request, counted with the model's tokenizer, or estimated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default_output: int | None = Field(None, ge=1, description="The max_tokens of requests that have none.")
    max_output: int | None = Field(None, ge=1, description="The largest max_tokens.")
    max_input: int | None = Field(None, ge=1, description="The longest prompt.")
    on_exceed: Literal["clamp", "reject"] = Field(
        "reject", description="Whether a max_tokens above max_output is lowered or refused."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_output is not None and (self.default_output or 0) > self.max_output:
            raise contradiction("default_output", f"default_output must be at most max_output={self.max_output}")
        return self


# Names of models and routes.
AllowedModels = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=MAX_MODEL_NAME, pattern=MODEL_NAME)], ...],
    Field(min_length=1, max_length=MAX_ALLOWED_MODELS, description="The models and routes that requests may name."),
]


class KeyOptions(BaseModel):
    """The options of an API key, as stored in its row.

    `no_cache`: the model's `cache` does not apply to requests with the key. `allowed_models`: the models and routes
    that its requests may name; None: all. A route may choose other models than these. `log_level`: at most this is kept
    of its requests in the request log; None: what its project and the installation keep.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)  # fields of a newer version

    cache: CacheOptions | None = None
    no_cache: bool = False
    context: ContextOptions | None = None
    token_limits: TokenLimits | None = None
    allowed_models: AllowedModels | None = None
    log_level: LogLevel | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """Read the options in a key's row, of which a newer version may have written some.

        What this version does not know is ignored, in each group of options. If it cannot read the values of a group,
        the key does not use the cache, or has the model's `context`. An unknown level of the request log is `none`.

        Raises:
            ValidationError: the other options, such as the limits of tokens, cannot be read.
        """
        values = dict(stored)
        if values.get("log_level") is not None:
            values["log_level"] = stored_level(str(values["log_level"]))
        for name, group, instead in _GROUPS:
            try:
                if values.get(name) is not None:
                    values[name] = group.model_validate(values[name], extra="ignore")
            except ValidationError:
                values = {**values, name: None, **instead}
        return cls.model_validate(values, extra="ignore")


# Options without which a key can be used, and those that then apply instead.
_GROUPS: Sequence[tuple[str, type[BaseModel], Mapping[str, Any]]] = (
    ("cache", CacheOptions, {"no_cache": True}),
    ("context", ContextOptions, {}),
)

NO_KEY_OPTIONS = KeyOptions()


@dataclass(frozen=True, slots=True)
class CacheControl:
    """The directives of a request's `Cache-Control`. `max_age_s`: no older answer is accepted."""

    no_store: bool = False
    no_cache: bool = False
    max_age_s: int | None = None


NO_CACHE_CONTROL = CacheControl()


@dataclass(frozen=True, slots=True)
class ToolClearing:
    """When old results of tools are cleared: above `trigger_tokens`, or with more than `trigger_uses` uses of tools.

    The newest `keep` uses are kept, and those of the tools in `exclude`. `at_least`: the tokens that must be saved.
    `inputs`: the tools whose arguments are cleared too; True is all.
    """

    trigger_tokens: int | None = None
    trigger_uses: int | None = None
    keep: int = 3
    at_least: int = 0
    exclude: frozenset[str] = frozenset()
    inputs: bool | frozenset[str] = False

    def clears_inputs(self, tool: str) -> bool:
        """Whether the arguments of calls to a tool are cleared."""
        return self.inputs if isinstance(self.inputs, bool) else tool in self.inputs


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The options of a request. `store`: as in OpenAI's API; if it is false, nothing of the request is kept. `streams`:
    the client receives the answer as a stream. `log_level`: at most this is kept in the request log."""

    cache: CacheOptions | None = None
    cache_control: CacheControl = NO_CACHE_CONTROL
    store: bool | None = None
    context: ContextOptions | None = None
    tool_clearing: ToolClearing | None = None
    streams: bool = False
    log_level: LogLevel | None = None


NO_REQUEST_OPTIONS = RequestOptions()
