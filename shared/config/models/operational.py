"""Marks the fields of a model's entry that do not change what the model generates: limits, addresses, timeouts, prices.

They are no part of the fingerprint.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel


class _Mark:
    """The metadata of a marked field."""


T = TypeVar("T")
_MARK = _Mark()
# The type of a marked field. A subclass that declares the field again need not repeat it.
Operational = Annotated[T, _MARK]


@cache
def operational_fields(kind: type[BaseModel]) -> frozenset[str]:
    """The names of the marked fields of a class."""
    declared = [base.model_fields for base in kind.__mro__ if issubclass(base, BaseModel)]
    return frozenset(name for fields in declared for name, field in fields.items() if _MARK in field.metadata)


def without_operational(entry: BaseModel) -> dict[str, Any]:
    """Encode an entry without its marked fields, also those of the models in it."""
    return entry.model_dump(mode="json", exclude=_marked(entry))


def _marked(entry: BaseModel) -> dict[str, Any]:
    """The marked fields, as pydantic's `exclude`."""
    found: dict[str, Any] = dict.fromkeys(operational_fields(type(entry)), True)
    for name in type(entry).model_fields.keys() - found.keys():
        value = getattr(entry, name)
        if isinstance(value, BaseModel):
            found[name] = _marked(value)
    return {name: fields for name, fields in found.items() if fields}
