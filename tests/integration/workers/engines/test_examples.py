"""The examples of models in the documentation and in examples/: they load, and get an answer of their stand-in."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.jobs.capability_check import CapabilityCheck
from shared.config.models.loader import ENGINES, ModelSpec, Registry, load_registry
from shared.config.models.polled import PolledOptions
from shared.config.models.presets import PRESETS
from shared.config.models.upstream import UpstreamModel
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message, Sampling
from tests.support.engine_tables import PAGE, REPOSITORY, row_name, uncommented_examples
from tests.support.metrics import worker_metrics
from tests.support.stack import write_models
from tests.support.vendors.stand_in import entry_at, stand_in_of
from tests.support.vendors.vendor import KEY
from workers.engines.factory import make_engine

REQUEST = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=50))
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(text: str) -> Iterator[str]:
    """The blocks of code, fenced or indented, that declare models."""
    for fenced in re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        if fenced.startswith("models:"):
            yield fenced
    for indented in re.findall(r"^    models:\n(?:(?:    .*)?\n)+", text, flags=re.MULTILINE):
        yield textwrap.dedent(indented)


def all_blocks() -> dict[str, str]:
    found = {"examples/models.yaml": uncommented_examples()}
    for page in PAGES:
        for number, block in enumerate(blocks(page.read_text())):
            found[f"{page.name}-{number}"] = block
    return found


BLOCKS = all_blocks()
IN_WORKER = ("vllm", "simulated")
ENTRIES = {
    f"{block}-{entry['name']}": entry
    for block, text in BLOCKS.items()
    for entry in yaml.safe_load(text)["models"]
    if "adapter_of" not in entry  # an adapter is no file of its own: `test_a_block_is_a_valid_file` loads it
}


def load(folder: Path, entry: dict[str, Any]) -> ModelSpec:
    (model,) = load_registry(write_models(folder / "models.yaml", [entry])).models.values()
    return model


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_a_valid_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(BLOCKS[name])
    assert load_registry(file).models


def test_the_page_has_an_example_of_each_engine_and_preset(tmp_path: Path) -> None:
    entries = [entry for name, entry in ENTRIES.items() if name.startswith(f"{PAGE.name}-")]
    shown = {row_name(load(tmp_path, entry)) for entry in entries}
    presets = (f"openai: {preset}" for preset in PRESETS)
    assert shown == {*ENGINES, "openai", *presets, "openai: openai, api: responses"}


async def answer_of(model: ModelSpec) -> str:
    """The text of an answer to `REQUEST`, which admission accepts."""
    CapabilityCheck(Registry({model.name: model})).check(model.name, REQUEST)
    engine = make_engine(model, worker_metrics(model.name))
    await engine.start()
    try:
        async with aclosing(engine.generate("job-1", REQUEST)) as items:
            return "".join([item.text async for item in items if isinstance(item, Delta)])
    finally:
        await engine.stop()


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry["engine"] == "simulated"])
async def test_an_example_of_the_simulated_engine_gets_an_answer(tmp_path: Path, name: str) -> None:
    assert await answer_of(load(tmp_path, ENTRIES[name]))


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry["engine"] not in IN_WORKER])
async def test_an_example_gets_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the address of its upstream replaced, but not the path, and the key in the variable that it names."""
    entry = ENTRIES[name]
    example = load(tmp_path, entry)
    assert isinstance(example, UpstreamModel)
    for variable in example.secret_envs:
        monkeypatch.setenv(variable, KEY)
    fast = (
        {"poll_interval_s": 0.001, "max_poll_interval_s": 0.001} if isinstance(example.options, PolledOptions) else {}
    )
    async with stand_in_of(example)().serve() as vendor:
        text = await answer_of(load(tmp_path, entry_at(entry, example, vendor.url, **fast)))
    assert text == "Hi there"
    assert vendor.generated == 1
    if example.secret_envs:
        assert all(vendor.has_key(seen) for seen in vendor.seen)
