"""The stand-in of a model in models.yaml, and the model's entry with the stand-in's address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from shared.config.models.openai import OpenAIModel
from shared.config.models.upstream import UpstreamModel
from tests.support.vendors.catalog import ENGINES, PRESET_VENDORS
from tests.support.vendors.triton import CHAT_TEMPLATE
from tests.support.vendors.vendor import Vendor


def stand_in_of(model: UpstreamModel) -> type[Vendor]:
    """The stand-in of the model's upstream."""
    if isinstance(model, OpenAIModel):
        if model.api == "responses":
            return ENGINES["responses"]
        if model.preset is not None:
            return PRESET_VENDORS[f"preset-{model.preset}"]
    return ENGINES[model.engine]


def entry_at(entry: Mapping[str, Any], model: UpstreamModel, origin: str, **more: object) -> dict[str, Any]:
    """The entry of `model` with its upstream at another scheme, host and port, and without a tokenizer's folder.

    `more`: further options.
    """
    options = {**entry.get("options", {}), **more, "base_url": f"{origin}{urlsplit(model.options.base_url).path}"}
    if options.pop("tokenizer", None) is not None:
        options["chat_template"] = str(CHAT_TEMPLATE)
    return {**entry, "options": options}
