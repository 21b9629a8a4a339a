"""All stand-ins by name. The contract suite runs over them, and so do the tests through the queue."""

from __future__ import annotations

from tests.support.vendors.anthropic import AnthropicVendor
from tests.support.vendors.openai import OpenAIVendor
from tests.support.vendors.replicate import ReplicateVendor
from tests.support.vendors.responses import ResponsesVendor
from tests.support.vendors.runpod import RunpodVendor
from tests.support.vendors.triton import TritonVendor
from tests.support.vendors.vendor import Vendor

VENDORS: dict[str, type[Vendor]] = {
    "openai": OpenAIVendor,
    "responses": ResponsesVendor,
    "replicate": ReplicateVendor,
    "runpod": RunpodVendor,
    "anthropic": AnthropicVendor,
    "triton": TritonVendor,
}
