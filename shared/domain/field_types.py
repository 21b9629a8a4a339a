"""Types of fields that requests of all kinds have, and errors about fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from shared.domain.owner import MAX_END_USER


def message_of(problem: Mapping[str, Any]) -> str:
    """The message of an item of `ValidationError.errors()`, without what pydantic puts before a validator's text."""
    return str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def contradiction(param: str, message: str) -> PydanticCustomError:
    """An error about fields that are valid alone but not together; it is reported for one of them, `param`."""
    return PydanticCustomError("contradiction", "{message}", {"param": param, "message": message})


def without_effect(param: str, reason: str) -> PydanticCustomError:
    """An error about a field that nothing reads because of another one."""
    return contradiction(param, f"has no effect {reason}; remove it")


def unicode_text(text: str) -> str:
    """Reject unpaired surrogates, which JSON can express but neither tokenizers nor databases accept."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text; it has an unpaired surrogate") from None
    return text


# Names of models and routes.
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"
MAX_MODEL_NAME = 200

UnicodeText = Annotated[str, AfterValidator(unicode_text)]
# A client's name for an end user.
EndUserName = Annotated[str, Field(min_length=1, max_length=MAX_END_USER), AfterValidator(unicode_text)]
