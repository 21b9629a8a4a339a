"""Reads request bodies as the API does, without a server."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from api.http.members import MemberReader, Shape
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

Model = TypeVar("Model", bound=BaseModel)


def member_reader(
    *, refuse_unknown: bool = False, extra_names: Mapping[str, Collection[str]] | None = None
) -> MemberReader:
    """`extra_names`: the names that each model allows in `extra_body`."""
    return MemberReader(
        Metrics(Exporter.API, ["sim"]),
        refuse_unknown=refuse_unknown,
        extra_names=lambda model: (extra_names or {}).get(model, ()),
    )


def read(schema: type[Model], body: Any, *, refuse_unknown: bool = False) -> Model:
    """Normalize and validate a body."""
    return schema.model_validate(member_reader(refuse_unknown=refuse_unknown).read(Shape(schema), body).body)
