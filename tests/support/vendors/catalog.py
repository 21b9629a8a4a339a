"""All stand-ins by the name of what they stand for; the contract suite and the tests through the queue run over them."""

from __future__ import annotations

from tests.support.vendors.openai import OpenAIVendor
from tests.support.vendors.vendor import Vendor

VENDORS: dict[str, type[Vendor]] = {
    "openai": OpenAIVendor,
}
