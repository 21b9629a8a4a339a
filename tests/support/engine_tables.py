"""The tables of docs/engines.md, from the code. `python -m tests.support.engine_tables` writes them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import yaml

from shared.config.models.capabilities import (
    ALL_CHAT_OPTIONS,
    ALL_SAMPLING,
    ALL_SOURCES,
    ALL_STRUCTURES,
    ALL_TOOL_CHOICES,
    OPENAI_SAMPLING,
    Capabilities,
)
from shared.config.models.loader import ModelSpec, Registry, load_registry
from shared.config.models.openai import OpenAIModel
from shared.config.models.presets import PRESETS

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples" / "models.yaml"
PAGE = REPOSITORY / "docs" / "engines.md"


def all_examples(folder: Path) -> Registry:
    """The models of the example file, also those that are commented out."""
    file = folder / "models.yaml"
    file.write_text(uncommented_examples())
    return load_registry(file)


def uncommented_examples() -> str:
    """The example file, with the models that are commented out."""
    return re.sub(r"^# (?=  )|^#$", "", EXAMPLES.read_text(), flags=re.MULTILINE)


def example_blocks(engines: Collection[str]) -> str:
    """The entries of models (no adapters) of the example file for these engines, also commented ones, as YAML."""
    entries = uncommented_examples().partition("models:\n")[2].strip("\n").split("\n\n")
    chosen = [entry for entry in entries if yaml.safe_load(entry)[0].get("engine") in engines]
    return "```yaml\nmodels:\n" + "\n\n".join(chosen) + "\n```"


def row_name(model: ModelSpec) -> str:
    """`engine`, or `engine: preset`, with the API if it is not Chat Completions."""
    if not isinstance(model, OpenAIModel):
        return model.engine
    name = model.engine if model.preset is None else f"{model.engine}: {model.preset}"
    return f"{name}, api: responses" if model.api == "responses" else name


def capability_table(registry: Registry) -> str:
    """A row for the first model of each engine, preset and API."""
    rows: dict[str, Capabilities] = {}
    for model in registry.models.values():
        rows.setdefault(row_name(model), model.capabilities)
    head = (
        "model", "raw prompts", "images, files", "tools", "structured outputs", "log probabilities", "`n`",
        "sampling parameters", "chat options", "names of authors", "continues a message", "after a loss", "cancels",
        "reports usage", "counts tokens",
    )  # fmt: skip
    return _table(head, [(f"`{name}`", *_cells(found)) for name, found in sorted(rows.items())])


def _cells(found: Capabilities) -> Iterable[str]:
    raw = "text, token ids" if found.token_prompts else "text" if found.raw_prompts else ""
    yield raw + (", echo" if found.echo else "")
    yield ", ".join(_media(found))
    tools = _names(found.tool_choices, ALL_TOOL_CHOICES) if found.tools else ""
    yield tools if found.tools_with_structure else f"{tools}, without a structured output"
    yield _names(found.structures, ALL_STRUCTURES)
    limits = (("", found.logprobs), (" of the prompt", found.prompt_logprobs))
    yield ", ".join(f"{limit}{of}" for of, limit in limits if limit is not None)
    yield str(found.max_choices)
    yield _names(found.sampling, ALL_SAMPLING, OPENAI_SAMPLING)
    yield _names(found.chat_options, ALL_CHAT_OPTIONS)
    for flag in (found.names, found.prefill):
        yield "yes" if flag else ""
    yield "resumed" if found.resume else "continued" if found.continues else ""
    for flag in (found.cancel, found.usage, found.token_counting):
        yield "yes" if flag else ""


def _media(found: Capabilities) -> Iterable[str]:
    """Images and files, with how they can be given if not in all ways."""
    for kind, sources in (("image", found.image_sources), ("file", found.file_sources)):
        if kind in found.modalities:
            named = _names(sources, ALL_SOURCES)
            yield kind if named == "all" else f"{kind} ({named})"


def _names(found: frozenset[str], everything: Iterable[str], openai: frozenset[str] | None = None) -> str:
    """Names as a short list: "all", "all but", "OpenAI's and"."""
    missing = frozenset(everything) - found
    if not missing:
        return "all"
    if len(missing) <= 4 and len(found) > len(missing):
        return f"all but {_code(missing)}"
    if openai is not None and openai <= found:
        return f"OpenAI's, {_code(found - openai)}" if found - openai else "OpenAI's"
    return _code(found)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def preset_table() -> str:
    """The differences that the table of presets has as data."""
    rows = []
    for name, preset in PRESETS.items():
        address = preset.base_url or preset.example_url
        headers = ", ".join(f"`{header}: {value}`" for header, value in preset.key_headers.items())
        back = f"`{preset.opaque}`" if preset.opaque else ""
        page = f"[page]({preset.page})"
        length = {"models": "`/v1/models`", "info": "`/info`", None: ""}[preset.length_page]
        caching = [preset.cache_key.name] if preset.cache_key is not None else []
        caching += ["cache_salt"] if preset.cache_salt else []
        cache = ", ".join(f"`{parameter}`" for parameter in caching)
        rows.append((f"`{name}`", f"`{address}`", headers, f"`{preset.max_tokens_field}`", length, back, cache, page))
    head = (
        "preset", "`base_url`", "key", "limit of tokens", "context length", "kept for the next turn", "prompt cache",
        "source",
    )  # fmt: skip
    return _table(head, rows)


def quirk_list() -> str:
    return "\n".join(f"- `{name}`: {'; '.join(preset.quirks)}." for name, preset in PRESETS.items())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(page: str, folder: Path) -> str:
    """The page with current tables, each between `<!-- NAME -->` and `<!-- /NAME -->`."""
    tables = {
        "capabilities": capability_table(all_examples(folder)),
        "presets": preset_table(),
        "quirks": quirk_list(),
        "examples of openai": example_blocks(("openai",)),
        "examples of engines in the worker": example_blocks(("vllm", "simulated")),
        "examples of serverless engines": example_blocks(("replicate", "runpod")),
    }
    for name, table in tables.items():
        before, opening, rest = page.partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->")
        page = f"{before}{opening}{table}\n{closing}{after}"
    return page


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(with_tables(PAGE.read_text(), Path(folder)))
