"""Quantized copies of the bundled model, from the checkpoint to an answer of a real engine."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

from launcher.quantize import checkpoint
from launcher.quantize.formats import EightBits, Format, FourBits
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message, Sampling
from tests.support.metrics import worker_metrics
from tests.support.real_engine import SMOLLM2
from tests.support.vllm_forks import forked_engines
from workers.engines.factory import make_engine

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.vllm,
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.mark.parametrize(("form", "size"), [(FourBits(64), 0.4), (EightBits(), 0.6)], ids=["4 bits", "8 bits"])
async def test_a_quantized_model_is_served(form: Format, size: float, tmp_path: Path) -> None:
    assert SMOLLM2.folder is not None
    report = checkpoint.write(checkpoint.read(SMOLLM2.folder), tmp_path / "quantized", form)
    assert report.layers == 30 * 7
    assert report.after < size * report.before
    model = SMOLLM2.model_copy(update={"model": str(tmp_path / "quantized")})
    engine = make_engine(model, worker_metrics(model.name))
    with forked_engines():
        await engine.start()
    try:
        request = GenerateRequest(
            messages=[Message(role="user", content="What is the capital of France?")],
            sampling=Sampling(temperature=0, max_tokens=16),
        )
        async with aclosing(engine.generate("quantized-1", request)) as items:
            text = "".join([item.text async for item in items if isinstance(item, Delta)])
        assert "Paris" in text
    finally:
        await engine.stop()
