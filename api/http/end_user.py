"""The parameters by which OpenAI's APIs and native jobs name the end user of a request."""

from __future__ import annotations

from pydantic import BaseModel, Field

from shared.domain.field_types import UnicodeText


class EndUserParameters(BaseModel):
    """The client's own name for the person behind a request. OpenAI replaces `user` by `safety_identifier`."""

    user: UnicodeText | None = Field(None, description="Your identifier of the end user; stored with the job.")
    safety_identifier: UnicodeText | None = Field(None, description="Same as `user`; takes precedence over it.")

    @property
    def end_user(self) -> str | None:
        """The name, if the request has one."""
        return self.safety_identifier or self.user
