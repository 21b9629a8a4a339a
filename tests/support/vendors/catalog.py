"""All stand-ins by name. The contract suite runs over them, and so do the tests through the queue.

What tests do with a preset beside its quirks, they do with the server without a preset: the rest is for the long suite.
"""

from __future__ import annotations

import pytest

from tests.support.vendors.anthropic import AnthropicVendor
from tests.support.vendors.openai import OpenAIVendor
from tests.support.vendors.presets import (
    AzureVendor,
    GeminiVendor,
    ModalVendor,
    OpenAIPresetVendor,
    OpenRouterVendor,
    RunpodRouteVendor,
    SglangVendor,
    TgiVendor,
    TritonFrontendVendor,
    VllmVendor,
)
from tests.support.vendors.replicate import ReplicateVendor
from tests.support.vendors.responses import ResponsesVendor
from tests.support.vendors.runpod import RunpodVendor
from tests.support.vendors.triton import TritonVendor
from tests.support.vendors.vendor import Vendor

ENGINES: dict[str, type[Vendor]] = {
    "openai": OpenAIVendor,
    "responses": ResponsesVendor,
    "replicate": ReplicateVendor,
    "runpod": RunpodVendor,
    "anthropic": AnthropicVendor,
    "triton": TritonVendor,
}

# The presets of `openai`. The names are those of the models in tests.
PRESET_VENDORS: dict[str, type[Vendor]] = {
    f"preset-{vendor.preset}": vendor
    for vendor in (
        OpenAIPresetVendor,
        AzureVendor,
        GeminiVendor,
        OpenRouterVendor,
        VllmVendor,
        SglangVendor,
        TgiVendor,
        TritonFrontendVendor,
        ModalVendor,
        RunpodRouteVendor,
    )
}
VENDORS = {**ENGINES, **PRESET_VENDORS}
# Parameters of a test: all of them, the presets in the long suite only.
ALL = [*ENGINES, *(pytest.param(name, marks=pytest.mark.long) for name in PRESET_VENDORS)]
