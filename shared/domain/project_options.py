"""The options of a project, as stored in its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.domain.log_level import LogLevel, stored_level


class ProjectOptions(BaseModel):
    """What applies to all jobs of a project.

    `log_level`: at most this is kept of them in the request log; None: what the installation keeps. `redaction`: the
    rules by which bodies of level `redacted` are redacted, as stored (`shared.privacy`); None: the default rules.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)  # fields of a newer version

    log_level: LogLevel | None = None
    redaction: dict[str, Any] | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """Read the options in a project's row, of which a newer version may have written some.

        A level that this version does not know is read as `none`: no more may be kept than the project wants. Rules
        that it cannot read are refused where they are used.
        """
        if not stored:
            return cls()
        values = dict(stored)
        if values.get("log_level") is not None:
            values["log_level"] = stored_level(str(values["log_level"]))
        try:
            return cls.model_validate(values)
        except ValidationError:
            return cls(log_level=LogLevel.NONE)

    def stored(self) -> dict[str, Any]:
        """The form in which a row has them."""
        return self.model_dump(mode="json", exclude_none=True)


NO_PROJECT_OPTIONS = ProjectOptions()
