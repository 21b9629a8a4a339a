"""The models that this installation serves, as declared in `models.yaml`."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import yaml
import yaml.reader
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from shared.bundled import BUNDLED_PREFIX, bundled_model_path
from shared.errors import HeadraceError

DEFAULT_SLOTS = 64
ENGINES = ("vllm", "openai", "simulated")
# What a model may be called.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"
MAX_NAME = 200


class RegistryError(HeadraceError):
    """models.yaml is not valid."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    # Whether a running job can be set aside for a more urgent one at no price: not where an upstream charges twice.
    yields: ClassVar[bool] = True

    name: str = Field(min_length=1, max_length=MAX_NAME, pattern=NAME)
    description: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Names how the model is run: another where models.yaml says something else of it."""
        return "fp_" + hashlib.sha256(self.model_dump_json(exclude={"description"}).encode()).hexdigest()[:12]


class VllmOptions(TypedDict, total=False):
    """`AsyncEngineArgs` by name: those that are read here too; the others are vLLM's to check."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    max_model_len: Annotated[int, Field(ge=1)] | None
    max_num_seqs: Annotated[int, Field(ge=1)]


class ChatSettings(BaseModel):
    """How a model's conversations are rendered and its answers parsed: what `vllm serve` calls the same.

    With a `tool_call_parser` tools are called automatically; without one no tool is called at all.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    tool_call_parser: str | None = Field(None, min_length=1, description="How the model writes tool calls.")
    reasoning_parser: str | None = Field(None, min_length=1, description="How the model writes its reasoning.")
    chat_template: str | None = Field(None, min_length=1, description="A Jinja file, in place of the model's own.")
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the template; a request's own go before them."
    )
    exclude_tools_when_tool_choice_none: bool = False
    tool_strict_level: str | None = Field(None, description="Of vLLM 0.32 and later.")


# What a vLLM model's options may not say, since `chat` does.
_SAID_IN_CHAT = ("reasoning_parser", "tool_call_parser", "chat_template", "enable_auto_tool_choice")


def _engine_options(options: VllmOptions) -> VllmOptions:
    for name in _SAID_IN_CHAT:
        if name in options:
            where = "chat.tool_call_parser turns it on" if name == "enable_auto_tool_choice" else f"say chat.{name}"
            raise ValueError(f"{name} is not an engine's option; {where} instead")
    return options


class VllmModel(_Spec):
    """A model in a vLLM engine of our own. `options` are `AsyncEngineArgs` by name."""

    engine: Literal["vllm"]
    model: str = Field(min_length=1, description="A local folder, a hub id, or bundled:NAME.")
    options: Annotated[VllmOptions, AfterValidator(_engine_options)] = Field(default_factory=VllmOptions)
    chat: ChatSettings = Field(default_factory=ChatSettings)

    @property
    def slots(self) -> int:
        """Sequences that the engine runs at once (`max_num_seqs`)."""
        return self.options.get("max_num_seqs", DEFAULT_SLOTS)

    @property
    def source(self) -> str:
        """What vLLM is given: a folder's path, or a hub id."""
        if self.model.startswith(BUNDLED_PREFIX):
            return str(bundled_model_path(self.model))
        return self.model

    @property
    def folder(self) -> Path | None:
        """The model's files, where they are on this machine."""
        path = Path(self.source).expanduser()
        return path if path.is_dir() else None

    @property
    def chat_template_text(self) -> str | None:
        """The template that `chat.chat_template` names; None: the model's own.

        Raises:
            RegistryError: the file cannot be read.
        """
        if (name := self.chat.chat_template) is None:
            return None
        try:
            return Path(name).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryError(
                f"models.yaml: {self.name}.chat.chat_template: {name} cannot be read ({error}); name a Jinja file"
            ) from error

    @property
    def max_model_len(self) -> int | None:
        """Context length in tokens, prompt and output together; None where only the engine can tell."""
        if (chosen := self.options.get("max_model_len")) is not None:
            return chosen
        if self.folder is None or not (config := self.folder / "config.json").is_file():
            return None
        length = json.loads(config.read_text()).get("max_position_embeddings")
        return int(length) if length else None


class SimulatedOptions(BaseModel):
    """How the simulated engine behaves. Times in milliseconds."""

    model_config = ConfigDict(extra="forbid")

    ttft_ms: float = Field(20, ge=0)
    itl_ms: float = Field(5, ge=0)
    default_tokens: int = Field(64, ge=1, description="Length of an answer without max_tokens.")
    max_model_len: int = Field(8192, ge=2)
    fail_on: str | None = Field(None, description="A prompt that contains this fails, as an engine would.")
    die_on: str | None = Field(None, description="A prompt that contains this ends the engine, with all its jobs.")


class SimulatedModel(_Spec):
    """No model: deterministic text at a fixed rate, for load tests and for trying things out."""

    engine: Literal["simulated"]
    slots: int = Field(256, ge=1, le=4096)
    options: SimulatedOptions = Field(default_factory=SimulatedOptions)

    @property
    def max_model_len(self) -> int | None:
        return self.options.max_model_len


def _address(text: str) -> str:
    """An http(s) address without its last slash; a password in it would end up in logs."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be an address such as https://api.openai.com/v1")
    return text.rstrip("/")


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("must be the name of an environment variable that holds the key, not the key")
    return text


class OpenAIOptions(BaseModel):
    """Where the upstream is, and how long it is waited for. Times in seconds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_url: Annotated[str, AfterValidator(_address)]
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = Field(
        None, description="The environment variable that holds the upstream's key; none is sent without it."
    )
    connect_timeout_s: float = Field(5, gt=0)
    read_timeout_s: float = Field(300, gt=0, description="To the first byte, and between any two.")
    max_retries: int = Field(3, ge=0, le=20, description="After failures before the first token.")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="How the upstream calls it; OpenAI's own newer models take the second alone."
    )
    max_model_len: int | None = Field(None, ge=2, description="Only shown, and max_tokens checked against it.")


class OpenAIModel(_Spec):
    """A model that an OpenAI-compatible server has; our worker relays."""

    yields: ClassVar[bool] = False

    engine: Literal["openai"]
    model: str = Field(min_length=1, description="What the upstream calls it.")
    slots: int = Field(256, ge=1, le=4096)
    options: OpenAIOptions

    @property
    def max_model_len(self) -> int | None:
        return self.options.max_model_len


ModelSpec = Annotated[VllmModel | OpenAIModel | SimulatedModel, Field(discriminator="engine")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: list[ModelSpec] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Registry:
    """The models by name, in the file's order."""

    models: dict[str, ModelSpec]

    def __contains__(self, name: object) -> bool:
        return name in self.models

    def __getitem__(self, name: str) -> ModelSpec:
        return self.models[name]


def load_registry(path: Path) -> Registry:
    """Read and check `models.yaml`.

    Raises:
        RegistryError: the file is missing, is not YAML, or a field is wrong; the message names line and field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RegistryError(f"{path}: cannot be read ({error.strerror}); set HEADRACE_MODELS to a file") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RegistryError(f"{path}, line {line}: not valid YAML: not UTF-8") from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RegistryError(f"{path}, line {line}: not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RegistryError(f"{path}, line {line}: not valid YAML: {error.reason}") from error
    try:
        parsed = TypeAdapter(_File).validate_python(data)
    except ValidationError as error:
        problems = [_problem(path, tree, problem) for problem in error.errors(include_url=False)]
        raise RegistryError("\n".join(problems)) from error

    models: dict[str, ModelSpec] = {}
    for index, spec in enumerate(parsed.models):
        if spec.name in models:
            line = _line(tree, ("models", index, "name"))
            raise RegistryError(f"{path}, line {line}: models[{index}].name: {spec.name!r} is declared twice")
        models[spec.name] = spec
    return Registry(models)


def _problem(path: Path, tree: yaml.Node | None, problem: ErrorDetails) -> str:
    location, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "union_tag_invalid" | "union_tag_not_found":
            location = (*location, "engine")
            found = f", got {problem['ctx']['tag']!r}" if "ctx" in problem and "tag" in problem["ctx"] else ""
            message = f"must be one of {', '.join(ENGINES)}{found}"
        case "extra_forbidden":
            message = "there is no such field"
        case "missing":
            message = "this field is required"
        case "model_type" | "model_attributes_type" | "dict_type":
            message = "must have fields" if location else "this field is required"
    return f"{path}, line {_line(tree, location)}: {_field(location)}: {message}"


def _steps(location: tuple[int | str, ...]) -> list[int | str]:
    """A pydantic location without the tags that it adds for the union's members."""
    return [step for position, step in enumerate(location) if not (position == 2 and step in ENGINES)]


def _field(location: tuple[int | str, ...]) -> str:
    name = ""
    for step in _steps(location):
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else str(step)
    return name or "models"


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """The line (from 1) where a location stands in the file; where it is missing, its parent's."""
    line = node.start_mark.line + 1 if node else 1
    for step in _steps(location):
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == step:
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        else:
            break
    return line
