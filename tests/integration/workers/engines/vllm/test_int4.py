"""4-bit weights on a CPU: the packer's format as others read it, and the kernel."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from launcher.quantize.packing import Rounded, quantize

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.vllm,
    # torch and vLLM warn about themselves at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

ROWS, COLUMNS, GROUP = 96, 128, 64


@pytest.fixture(scope="module")
def rounded() -> Rounded:
    return quantize(np.random.default_rng(3).normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32), GROUP)


def tensors(rounded: Rounded) -> tuple[Any, Any]:
    import torch

    scales = torch.from_numpy(rounded.scales.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rounded.packed), scales


def dequantized(rounded: Rounded) -> Any:
    """The weights as the library of the format decodes them."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    packed, scales = tensors(rounded)
    values = unpack_from_int32(packed, 4, torch.Size([ROWS, COLUMNS]))
    return values.float() * scales.float().repeat_interleave(GROUP, dim=1)


async def test_the_library_of_the_format_reads_what_the_packer_writes(rounded: Rounded) -> None:
    original = np.random.default_rng(3).normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)
    error = float(np.square(dequantized(rounded).numpy() - original).sum())
    assert error == pytest.approx(rounded.squared_error, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_the_kernel_multiplies_by_the_weights_that_were_packed(rounded: Rounded, dtype: str) -> None:
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    from workers.engines.vllm.int4_kernel import TorchInt4LinearKernel

    kind = getattr(torch, dtype)
    config = MPLinearLayerConfig((COLUMNS, ROWS), (COLUMNS, ROWS), scalar_types.uint4b8, kind, GROUP, False)
    kernel = TorchInt4LinearKernel.__new__(TorchInt4LinearKernel)
    kernel.config, kernel.w_q_name, kernel.w_s_name, kernel.w_zp_name = config, "q", "s", None
    packed, scales = tensors(rounded)
    layer: Any = SimpleNamespace(q=torch.nn.Parameter(packed, False), s=torch.nn.Parameter(scales, False))
    layer.q.input_dim = layer.q.packed_dim = layer.s.input_dim = 1
    layer.q.output_dim = layer.s.output_dim = 0
    kernel.process_weights_after_loading(layer)
    x = torch.randn(2, 5, COLUMNS, generator=torch.Generator().manual_seed(1)).to(kind)
    bias = torch.arange(ROWS).to(kind) / 8
    result = kernel.apply_weights(layer, x, bias)
    expected = x.float() @ dequantized(rounded).T + bias.float()
    assert (result.shape, result.dtype) == ((2, 5, ROWS), kind)
    torch.testing.assert_close(result.float(), expected, atol=0.06, rtol=0.02)


async def test_layers_that_it_cannot_run_are_left_to_vllm() -> None:
    import torch
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    from workers.engines.vllm.int4_kernel import TorchInt4LinearKernel

    good = MPLinearLayerConfig((COLUMNS, ROWS), (COLUMNS, ROWS), scalar_types.uint4b8, torch.float32, GROUP, False)
    assert TorchInt4LinearKernel.can_implement(good) == (True, None)
    for change in (
        {"weight_type": scalar_types.uint4},
        {"zero_points": True},
        {"group_size": 48},
        {"group_size": -1},
        {"partition_weight_shape": (COLUMNS, 100)},
    ):
        possible, reason = TorchInt4LinearKernel.can_implement(dataclasses.replace(good, **change))
        assert not possible
        assert reason
