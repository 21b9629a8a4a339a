"""Runs 4-bit weights on CPUs for which vLLM's build has no kernel: those without AVX-512, and float32 on all.

vLLM's own kernel for CPUs (`CPUWNA16LinearKernel`) is in its builds for AVX-512 only, and computes in bfloat16 and
float16 only; vLLM selects it nevertheless, and the engine fails at its first step. PyTorch has a kernel that also runs
with AVX2. It computes in bfloat16 with float32 sums.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel, MPLinearLayerConfig
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types

GROUP_SIZES = (32, 64, 128, 256)
# PyTorch's kernel computes this many outputs at a time.
OUTPUTS = 16


class TorchInt4LinearKernel(MPLinearKernel):  # type: ignore[misc]  # vLLM ships no types
    """Symmetric 4-bit weights (compressed-tensors or GPTQ) with `torch.ops.aten._weight_int4pack_mm_for_cpu`."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Whether this kernel is to be used for a layer, and the reason if it is not."""
        if c.act_type != torch.float32 and hasattr(torch.ops._C, "cpu_gemm_wna16"):
            return False, "vLLM has a kernel for this CPU"
        inputs, outputs = c.partition_weight_shape
        if c.weight_type != scalar_types.uint4b8 or c.zero_points:
            return False, f"it needs symmetric 4-bit weights, not {c.weight_type}"
        if c.group_size not in GROUP_SIZES or inputs % c.group_size:
            return False, f"group size {c.group_size} is not one of {GROUP_SIZES} that divides {inputs}"
        if outputs % OUTPUTS:
            return False, f"{outputs} outputs are not a multiple of {OUTPUTS}"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Repack the weights once, after they are loaded."""
        weight, scale = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
        values = unpack_quantized_values_into_int32(weight.data, self.config.weight_type, weight.packed_dim)
        if weight.input_dim == 0:
            values = values.t()
        # The kernel expects a scale and the value of 8 for each group and output: (groups, outputs, 2).
        scales = scale.data if scale.output_dim == 1 else scale.data.t()
        scales = scales.to(torch.bfloat16)
        layer.int4_scales = torch.stack([scales, torch.zeros_like(scales)], dim=2).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(values.contiguous(), 1)
        weight.data, scale.data = packed, torch.empty(0)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Multiply: (..., inputs) to (..., outputs), in the dtype of `x`."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        result: Any = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, getattr(layer, self.w_q_name), self.config.group_size, layer.int4_scales
        )
        result = result.to(x.dtype).reshape(*x.shape[:-1], -1)
        return result if bias is None else result + bias


def register() -> None:
    """Offer the kernel to vLLM in this process, before those of vLLM, which accept layers that they cannot run."""
    kernels = linear._POSSIBLE_KERNELS[PlatformEnum.CPU]
    if current_platform.is_cpu() and TorchInt4LinearKernel not in kernels:
        kernels.insert(0, TorchInt4LinearKernel)
