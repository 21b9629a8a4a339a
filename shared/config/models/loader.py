"""Loads the models that this installation serves, and the routes to them, from `models.yaml`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from shared.config.models.adapters import Adapter
from shared.config.models.anthropic import AnthropicModel
from shared.config.models.base import MAX_NAME, NAME, RegistryError
from shared.config.models.conditions import Conditions
from shared.config.models.openai import OpenAIModel
from shared.config.models.prices import Prices
from shared.config.models.replicate import ReplicateModel
from shared.config.models.routes import Mode, RequestedRoute, Route, requested_names, route_problems
from shared.config.models.runpod import RunpodModel
from shared.config.models.simulated import SimulatedModel
from shared.config.models.triton import TritonModel
from shared.config.models.vllm import VllmModel
from shared.config.yaml_file import Location, YamlFileError, field_name, line_of, read_yaml
from shared.domain.errors import NotFound
from shared.domain.field_types import message_of

_AnySpec = VllmModel | OpenAIModel | AnthropicModel | TritonModel | ReplicateModel | RunpodModel | SimulatedModel
ModelSpec = Annotated[_AnySpec, Field(discriminator="engine")]
# Names that other systems have for fields of ours.
USUAL_NAMES = {
    "max_concurrent_requests": "the model's slots, the concurrent requests of each worker",
    "rpm": "options.requests_per_minute",
    "tpm": "options.tokens_per_minute",
    "api_base": "options.base_url",
    "input_cost_per_token": "price.input, in dollars per million tokens",
    "output_cost_per_token": "price.output, in dollars per million tokens",
    "api_key": "options.api_key_env, the name of an environment variable",
}
ENGINES = tuple(get_args(spec.model_fields["engine"].annotation)[0] for spec in get_args(_AnySpec))


class AdapterEntry(BaseModel):
    """An entry of models.yaml that declares an adapter. Everything that it does not set is as in its base's entry."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=MAX_NAME, pattern=NAME)
    description: str = ""
    price: Prices | None = Field(None, description="What its tokens cost. Default: the price of the base model.")
    adapter_of: str = Field(min_length=1, description="The name of the base model.")
    adapter: str = Field(min_length=1, description="A local folder, or a Hugging Face id.")


# How the locations of pydantic's errors name the two kinds of entries. No field has such a name.
_MODEL, _ADAPTER = "entry of a model", "entry of an adapter"


def _kind(entry: Any) -> str:
    return _ADAPTER if isinstance(entry, Mapping) and "adapter_of" in entry else _MODEL


_Entry = Annotated[Annotated[AdapterEntry, Tag(_ADAPTER)] | Annotated[ModelSpec, Tag(_MODEL)], Discriminator(_kind)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: list[_Entry] = Field(min_length=1)
    routes: list[Route] = Field(default_factory=list)


class _Served(NamedTuple):
    """What a process serves at a time, with what each request looks up."""

    models: Mapping[str, ModelSpec]
    routes: Sequence[Route]
    route_names: Mapping[str, RequestedRoute]
    # The model on whose queue the jobs of each model lie.
    queues: Mapping[str, str]
    # The names of the provider's parameters that requests for each model and each route may have.
    extra_body_names: Mapping[str, Collection[str]]


class Registry:
    """The models that this process serves, by name, in the order of the file, and the routes to them.

    They are replaced all at once when the file is reloaded. Code that awaits between two reads may see a model
    disappear. May be read from any thread.
    """

    def __init__(self, models: Mapping[str, ModelSpec], routes: Sequence[Route] = ()) -> None:
        self.replace(models, routes)

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        """The current models; a later `replace` does not change this mapping."""
        return self._served.models

    @property
    def routes(self) -> Sequence[Route]:
        """The current routes."""
        return self._served.routes

    def replace(self, models: Mapping[str, ModelSpec], routes: Sequence[Route] = ()) -> None:
        """Serve these models and routes from now on."""
        names = dict(item for route in routes for item in requested_names(route))
        extra_body: dict[str, Collection[str]] = {name: spec.capabilities.extra_body for name, spec in models.items()}
        for name, requested in names.items():
            candidates = [models[model] for model in requested.route.candidates if model in models]
            extra_body[name] = frozenset().union(*(spec.capabilities.extra_body for spec in candidates))
        queues = {name: spec.queue for name, spec in models.items()}
        # One assignment, because other threads read.
        self._served = _Served(models, tuple(routes), names, queues, extra_body)

    def route(self, name: str) -> RequestedRoute | None:
        """The route that a request's model names, with its mode; None if it names none."""
        return self._served.route_names.get(name)

    def may_be_requested(self, name: str) -> bool:
        """Whether a request may name this as its model: a model or a route."""
        served = self._served
        return name in served.models or name in served.route_names

    @property
    def queues(self) -> Sequence[str]:
        """The models that have queues and workers of their own: those that are no adapters."""
        return [name for name, spec in self._served.models.items() if spec.adapter is None]

    def queue_of(self, name: str) -> str:
        """The model on whose queue the jobs of a model lie: itself, or the base of an adapter."""
        return self._served.queues.get(name, name)

    def engine_of(self, name: str) -> str | None:
        """The engine of a model; None if there is no such model."""
        spec = self._served.models.get(name)
        return None if spec is None else spec.engine

    def names_on(self, queue: str) -> tuple[str, ...]:
        """The models whose jobs lie on a queue: the model that it belongs to, and the adapters of that."""
        spec = self._served.models.get(queue)
        return (queue,) if spec is None else spec.served_names

    def extra_body_names(self, name: str) -> Collection[str]:
        """The provider's parameters that requests for a model may have, or for a route, for one of its models."""
        return self._served.extra_body_names.get(name, ())

    def starts_early(self, name: str) -> bool:
        """Whether new jobs of a model may be started before their claims are committed (`Spec.starts_early`)."""
        spec = self._served.models.get(name)
        return spec is not None and spec.starts_early

    def __contains__(self, name: object) -> bool:
        return name in self._served.models

    def __getitem__(self, name: str) -> ModelSpec:
        """The model of this name; raises `NotFound` with the names of all models and routes."""
        served = self._served
        if name not in served.models:
            route, _, mode = name.rpartition(":")
            if route in served.route_names and mode in tuple(Mode):
                reason = f"The route `{route}` has no modes, because it does not choose by complexity; use `{route}`."
                raise NotFound(reason, param="model", code="model_not_found")
            routes = f"; routes: {', '.join(route.name for route in served.routes)}" if served.routes else ""
            raise NotFound(
                f"The model `{name}` does not exist; available models: {', '.join(served.models)}{routes}.",
                param="model",
                code="model_not_found",
            )
        return served.models[name]


def load_registry(path: Path) -> Registry:
    """Read and validate `models.yaml`.

    Raises:
        RegistryError: the file is missing, is not YAML, or a field is wrong; the message names the line and the field.
    """
    try:
        file = read_yaml(path, variable="HEADRACE_MODELS", root="models")
    except YamlFileError as error:
        raise RegistryError(str(error)) from error
    tree, data = file.tree, file.data
    try:
        parsed = TypeAdapter(_File).validate_python(data)
    except ValidationError as error:
        problems = [_problem(path, tree, problem) for problem in error.errors(include_url=False)]
        raise RegistryError("\n".join(problems)) from error

    for index, entry in enumerate(parsed.models):
        if any(entry.name == earlier.name for earlier in parsed.models[:index]):
            line = _line(tree, ("models", index, "name"))
            raise RegistryError(f"{path}, line {line}: models[{index}].name: {entry.name!r} is declared twice")
    specs = {entry.name: entry for entry in parsed.models if not isinstance(entry, AdapterEntry)}
    for spec in specs.values():
        spec.read_from(path)  # an adapter is a copy of its base
    adapters: dict[str, ModelSpec] = {}
    for index, entry in enumerate(parsed.models):
        if isinstance(entry, AdapterEntry):
            try:
                adapters[entry.name] = _adapter(entry, specs)
            except PydanticCustomError as error:
                place = ("models", index, *_steps_of(error.context))
                message = f"{path}, line {_line(tree, place)}: {_field(place)}: {error.message()}"
                raise RegistryError(message) from error
            except ValueError as error:
                line = _line(tree, ("models", index, "adapter_of"))
                raise RegistryError(f"{path}, line {line}: models[{index}].adapter_of: {error}") from error
            except OSError as error:
                line = _line(tree, ("models", index, "adapter"))
                raise RegistryError(f"{path}, line {line}: models[{index}].adapter: cannot be read: {error}") from error
    models: dict[str, ModelSpec] = {
        entry.name: adapters[entry.name] if entry.name in adapters else _with_adapters(specs[entry.name], adapters)
        for entry in parsed.models
    }
    for index, spec in enumerate(models.values()):
        if spec.adapter is not None:
            continue
        if (problem := _summarizer_problem(spec, models)) is not None:
            line = _line(tree, ("models", index, "context", "model"))
            raise RegistryError(f"{path}, line {line}: models[{index}].context.model: {problem}")
    problems = [
        f"{path}, line {_line(tree, location)}: {_field(location)}: {message}"
        for location, message in route_problems(parsed.routes, models)
    ]
    if problems:
        raise RegistryError("\n".join(problems))
    return Registry(models, parsed.routes)


def _adapter(entry: AdapterEntry, specs: Mapping[str, ModelSpec]) -> ModelSpec:
    """The model that the entry of an adapter declares.

    Raises:
        PydanticCustomError: its price cannot apply to its base.
        ValueError: its base is none.
        OSError: its files cannot be read.
    """
    base = specs.get(entry.adapter_of)
    if base is None:
        raise ValueError(f"there is no model {entry.adapter_of!r}; a base is an entry with an `engine`")
    if not base.takes_adapters:
        raise ValueError(
            f"{base.name!r} runs on the engine {base.engine}; LoRA adapters need a base on the engine vllm. An upstream"
            " that serves the adapter itself is an entry of its own, with the adapter's name as `model`"
        )
    base.check_price(entry.price or ())
    return base.as_adapter(entry.name, entry.description, Adapter.of(base.name, entry.adapter), entry.price)


def _with_adapters(spec: ModelSpec, adapters: Mapping[str, ModelSpec]) -> ModelSpec:
    own: list[Any] = [one for one in adapters.values() if one.queue == spec.name]  # of the base's class
    return spec.with_adapters(own)


def errors_at(path: Path, model: str, problems: Iterable[tuple[tuple[int | str, ...], str]]) -> str:
    """Messages about places of a model's entry, each with its line and field, for a file that `load_registry` read.

    A problem is the place in the entry, and a message.
    """
    tree = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    entries = yaml.safe_load(path.read_text())["models"]
    index = next(index for index, entry in enumerate(entries) if entry["name"] == model)
    places = [(("models", index, *place), message) for place, message in problems]
    return "\n".join(f"{path}, line {_line(tree, place)}: {_field(place)}: {message}" for place, message in places)


# The least context with which a model can write summaries.
MIN_SUMMARIZER_CONTEXT = 512


def _summarizer_problem(spec: ModelSpec, models: Mapping[str, ModelSpec]) -> str | None:
    """Why the model that is to write summaries cannot."""
    name = spec.context.model if spec.context is not None else None
    if name is None:
        return None
    if name not in models:
        return f"there is no model {name!r}"
    context = models[name].max_model_len
    if context is not None and context < MIN_SUMMARIZER_CONTEXT:
        return f"the context of {name!r}, {context} tokens, is too small to write summaries: {MIN_SUMMARIZER_CONTEXT}"
    return None


def _problem(path: Path, tree: yaml.Node | None, problem: ErrorDetails) -> str:
    location, message = problem["loc"], message_of(problem)
    match problem["type"]:
        case "union_tag_invalid" | "union_tag_not_found":
            location = (*location, "engine")
            found = f", got {problem['ctx']['tag']!r}" if "ctx" in problem and "tag" in problem["ctx"] else ""
            message = f"must be one of {', '.join(ENGINES)}{found}"
        case "extra_forbidden":
            message = "unknown field"
            if (usual := USUAL_NAMES.get(str(location[-1]))) is not None:
                message += f"; use {usual}"
            elif location[-2:-1] == ("if",):
                message = f"unknown condition; conditions are {', '.join(Conditions.model_fields)}"
        case "missing":
            message = "this field is required"
            if location[-1] == "options":
                message += "; it has the address of the upstream (base_url)"
        case "contradiction":
            location = (*location, *_steps_of(problem["ctx"]))
        case "model_type" | "model_attributes_type" | "dict_type":
            message = "must be a mapping" if location else "this field is required"
    return f"{path}, line {_line(tree, location)}: {_field(location)}: {message}"


def _steps(location: Location) -> list[int | str]:
    """A pydantic location without the union tags that pydantic inserts: of the entry's kind, and of its engine."""
    kind, engine = location[2:3], location[3:4]
    if kind not in ((_MODEL,), (_ADAPTER,)):
        return [*location]
    return [*location[:2], *location[4 if engine and engine[0] in ENGINES else 3 :]]


def _steps_of(context: Mapping[str, Any] | None) -> Iterator[int | str]:
    """The steps to the field that a contradiction names, such as `price.1.valid_from`."""
    for step in str((context or {})["param"]).split("."):
        yield int(step) if step.isdigit() else step


def _field(location: Location) -> str:
    return field_name(tuple(_steps(location)), "models")


def _line(tree: yaml.Node | None, location: Location) -> int:
    return line_of(tree, tuple(_steps(location)))
