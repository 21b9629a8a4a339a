"""Tries a route: what `POST /v1/route` responds with for the fields of a form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from api.console.actions import Form, errors_of
from api.console.routing.view import why
from api.http.json_body import BodyWork
from api.http.submit_headers import SubmitHeaders
from api.jobs.admission import Admission
from api.jobs.route_query import RouteAnswer, RouteRequest, explain_route
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.config.models.routes import requested_names
from shared.domain.errors import Forbidden, InvalidRequest, NotFound

FIELDS = ("model", "prompt", "with")
_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
MAX_PROMPT = 200_000


@dataclass(frozen=True, slots=True)
class Trial:
    """The answer, and in words why; or what is wrong with the form."""

    form: Form
    answer: RouteAnswer | None = None
    why: str = ""


def names_of(registry: Registry) -> Sequence[str]:
    """The names by which requests choose routes."""
    return [name for route in registry.routes for name, _ in requested_names(route)]


async def try_route(
    form: Form, principal: Principal, admission: Admission, registry: Registry, *, is_operator: bool
) -> Trial:
    """Ask which model would run the request that a form describes, without running it."""
    if not form["prompt"]:
        return Trial(form.with_errors({"prompt": "Enter a prompt."}))
    if len(form["prompt"]) > MAX_PROMPT:
        return Trial(form.with_errors({"prompt": f"Must have at most {MAX_PROMPT:,} characters."}))
    try:
        body = RouteRequest.model_validate(_body(form))
        work = BodyWork(len(form["prompt"]))
        answer = await explain_route(body, principal, admission, SubmitHeaders(), work)
    except ValidationError as error:
        return Trial(form.with_errors(errors_of(error, FIELDS)))
    except (InvalidRequest, NotFound, Forbidden) as error:
        field = "model" if isinstance(error, NotFound) or error.param == "model" else "prompt"
        return Trial(form.with_errors({field: error.message}))
    found = registry.route(form["model"])
    text = ""
    if answer.rule is not None:
        text = why(answer.rule, None if found is None else found.route, is_operator=is_operator)
    return Trial(form, answer, text)


def _body(form: Form) -> dict[str, Any]:
    body: dict[str, Any] = {"model": form["model"], "messages": [{"role": "user", "content": form["prompt"]}]}
    if "tools" in form.all("with"):
        body["tools"] = [_TOOL]
    if "structured_output" in form.all("with"):
        body["response_format"] = {"type": "json_object"}
    return body
