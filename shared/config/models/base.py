"""What the specs of all engines share."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from shared.domain.errors import HeadraceError

# What a model may be called.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"
MAX_NAME = 200


class RegistryError(HeadraceError):
    """models.yaml is not valid."""


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    # Whether a running job can be set aside for a more urgent one at no price: not where an upstream charges twice.
    yields: ClassVar[bool] = True

    name: str = Field(min_length=1, max_length=MAX_NAME, pattern=NAME)
    description: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Names how the model is run: another where models.yaml says something else of it."""
        return "fp_" + hashlib.sha256(self.model_dump_json(exclude={"description"}).encode()).hexdigest()[:12]
