"""Messages of validation errors."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from shared.domain.field_types import message_of


class Even(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def check(cls, number: int) -> int:
        if number < 0:
            raise ValueError("must not be negative")
        assert number % 2 == 0, "must be even"
        return number


@pytest.mark.parametrize(
    ("number", "message"),
    [(-1, "must not be negative"), (1, "must be even"), ("x", "Input should be a valid integer")],
)
def test_messages_of_validators_are_as_they_were_raised(number: object, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Even.model_validate({"number": number})
    assert message_of(error.value.errors()[0]).startswith(message)
