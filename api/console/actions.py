"""Requests that change something: their forms, their confirmation, and the page that follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.responses import RedirectResponse, Response

from api.console.navigation import asks_for_part, browser_path, root_of
from api.console.templates import page_response
from shared.domain.field_types import message_of

# Longer values of a field are not accepted: only prompts are longer.
MAX_VALUE = 1000


@dataclass(frozen=True, slots=True)
class Form:
    """A form as it was sent: its values by field, and what is wrong with them."""

    values: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")

    def all(self, name: str) -> Sequence[str]:
        """All values of a field that may be sent several times, such as one of checkboxes."""
        return self.lists.get(name, ())

    def error(self, name: str) -> str | None:
        """What is wrong with a field."""
        return self.errors.get(name)

    def with_errors(self, errors: Mapping[str, str]) -> Form:
        """The same form with these errors."""
        return Form(self.values, self.lists, errors)


async def read_form(request: Request) -> Form:
    """The form of a request. Values are stripped; files are ignored."""
    form = await request.form()
    values: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            values.setdefault(name, []).append(value.strip())
    too_long = {
        name: f"Must have at most {MAX_VALUE} characters."
        for name, texts in values.items()
        if name != "prompt" and any(len(text) > MAX_VALUE for text in texts)
    }
    return Form({name: texts[-1] for name, texts in values.items()}, values, too_long)


def errors_of(error: ValidationError, names: Iterable[str]) -> dict[str, str]:
    """The first error of each field of a form whose fields are named by the places of values: `options.cache.ttl`.

    An error of a group of values, or of a part of a value, is that of the field with the longest name in common.
    """
    known = list(names)
    found: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        place = [str(part) for part in problem["loc"]]
        if (param := problem.get("ctx", {}).get("param")) is not None:
            place.append(str(param))
        message = message_of(problem)
        found.setdefault(_closest(".".join(place), known), f"{message[:1].upper()}{message[1:]}.")
    return found


def _closest(place: str, names: Sequence[str]) -> str:
    while place not in names and "." in place:
        below = next((name for name in names if name.startswith(f"{place}.")), None)
        if below is not None:
            return below
        place = place.rpartition(".")[0]
    return place


def redirect(request: Request, page: str) -> RedirectResponse:
    """Lead to a page, after a form was processed."""
    return RedirectResponse(root_of(browser_path(request.scope)) + page, status_code=303)


def dialog_response(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """A question, for a script that shows it in a dialog, or as a page of its own.

    Its template extends `dialog.html`, and `values` are what it shows.
    """
    return page_response(request.scope, template, status, is_part=asks_for_part(request.scope), **values)
