"""The options of API keys as they are stored in rows, of which a newer version may have written some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shared.domain.answer_options import NO_KEY_OPTIONS, KeyOptions
from shared.domain.errors import UnreadableRow
from shared.domain.field_types import message_of


def read_options(key_id: int, stored: Mapping[str, Any]) -> KeyOptions:
    """The options in a row.

    Raises:
        UnreadableRow: this version cannot read them.
    """
    if not stored:
        return NO_KEY_OPTIONS
    try:
        return KeyOptions.read(stored)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, ("options", *first["loc"])))
        raise UnreadableRow("API key", f"key_{key_id}", f"{place}: {message_of(first)}") from None


def readable_options(key_id: int, stored: Mapping[str, Any]) -> KeyOptions | None:
    """The options in a row; None if this version cannot read them."""
    try:
        return read_options(key_id, stored)
    except UnreadableRow:
        return None


def to_stored(options: KeyOptions) -> dict[str, Any]:
    """The form in which a row has the options."""
    groups = options.model_dump(mode="json", exclude_none=True)
    return {name: value for name, value in groups.items() if value is not False}


def merge_stored(stored: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new options, and of the stored ones what this version has not read (it has read `old`)."""
    merged: dict[str, Any] = {}
    for name in {**stored, **new}:
        if new.get(name) == old.get(name):
            if name in stored:
                merged[name] = stored[name]
        elif isinstance(new.get(name), dict) and isinstance(old.get(name), dict):
            unknown = {field: value for field, value in stored[name].items() if field not in old[name]}
            merged[name] = {**unknown, **new[name]}
        elif name in new:
            merged[name] = new[name]
    return merged
