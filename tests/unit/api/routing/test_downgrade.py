"""Routes choose a cheaper model if a budget has no room for the one that they chose first."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from api.budgets.budgets import Budgets
from api.jobs.admission import Admission
from api.keys.principal import Principal
from shared.domain.answer_options import RequestOptions
from shared.domain.errors import BudgetExceeded
from shared.domain.log_level import LogLevel
from shared.domain.new_job import NewJob
from tests.support.routing import COMPLEX, IMAGE, OWNER, SIMPLE, Routing, chat, user
from tests.unit.api.routing.test_sticky import request, result, said

MODELS = """\
models:
  - {name: small, engine: simulated}
  - {name: middle, engine: simulated}
  - {name: large, engine: simulated}
  - {name: vision, engine: simulated, modalities: [image]}
  - {name: claude, engine: anthropic, model: claude-haiku-4-5, options: {api_key_env: KEY}}
routes:
  - name: auto
    models: [small, middle, large]
    rules:
      - {name: images, if: {images: true}, model: vision}
    fallbacks: {middle: [small]}
  - name: flat
    otherwise: vision
    fallbacks: {vision: [small, middle]}
  - {name: upwards, models: [small, middle], fallbacks: {small: [middle]}}
  - {name: mixed, models: [small, claude, large]}
"""
COSTS = {"small": 1, "middle": 5, "large": 10, "vision": 20, "claude": 3}


@pytest.fixture
def routing(tmp_path: Path) -> Routing:
    return Routing(tmp_path, MODELS)


@pytest.mark.parametrize(
    ("below", "room", "model"),
    [
        (10, 9, "middle"),
        (10, 5, "middle"),
        (10, 4, "small"),
        (10, 0, "small"),  # it says when there is room
        (5, 9, "small"),  # a statement has just refused the other one
        (1, 1, None),
    ],
)
async def test_the_dearest_model_that_there_is_room_for_is_chosen(
    routing: Routing, below: int, room: int, model: str | None
) -> None:
    decision = await routing.downgrade(chat(COMPLEX), COSTS, below=below, room=room)
    if model is None:
        assert decision is None
        return
    assert decision is not None
    assert (routing.model, decision.rule, decision.downgraded_from) == (model, "budget", "large")
    assert routing.job.decisions.headers()["x-headrace-route"].endswith("; downgraded_from=large")
    assert routing.counted_decisions(route="auto", rule="budget", model=model) == 1


async def test_no_dearer_model_takes_over(routing: Routing) -> None:
    decision = await routing.downgrade(chat(COMPLEX), COSTS, below=10, room=6)
    assert decision is not None
    assert (routing.model, decision.fallbacks) == ("middle", ("small",))
    decision = await routing.downgrade(chat(COMPLEX), COSTS, below=10, room=2)
    assert decision is not None
    assert (routing.model, decision.fallbacks) == ("small", ())


async def test_the_same_model_may_remain_without_the_fallbacks_that_cost_more(routing: Routing) -> None:
    assert await routing.decided(chat(SIMPLE), "upwards") == ("small", (), ("middle",))
    decision = await routing.downgrade(chat(SIMPLE), COSTS, below=5, room=3, name="upwards")
    assert decision is not None
    assert (routing.model, decision.rule, decision.fallbacks, decision.downgraded_from) == ("small", "budget", (), None)


async def test_a_model_that_cannot_serve_the_request_or_has_no_price_is_not_chosen(routing: Routing) -> None:
    assert await routing.downgrade(chat([IMAGE]), COSTS, below=20, room=20) is None
    await routing.downgrade(chat(COMPLEX), {**COSTS, "middle": None}, below=10, room=9)
    assert routing.model == "small"
    routing.queues.pause("middle")
    await routing.downgrade(chat(COMPLEX), COSTS, below=10, room=9)
    assert routing.model == "small", "nobody works on the other one"


async def test_a_route_without_levels_chooses_among_all_of_its_models(routing: Routing) -> None:
    await routing.downgrade(chat(SIMPLE), COSTS, below=20, room=9, name="flat")
    assert routing.model == "middle"


async def test_a_model_is_no_route(routing: Routing) -> None:
    assert await routing.downgrade(chat(SIMPLE), COSTS, below=20, room=9, name="large") is None


async def test_a_conversation_may_go_down_but_not_in_a_tool_loop(routing: Routing) -> None:
    turns = [user(COMPLEX)]
    assert await routing.choose(request(*turns)) == "large"
    calling = [*turns, said("use", calls=1), result("use")]
    await routing.answer(said("use", calls=1))
    assert await routing.downgrade(request(*calling), COSTS, below=10, room=9) is None
    later = [*turns, said("..."), user(SIMPLE)]
    assert await routing.downgrade(request(*later), COSTS, below=10, room=1) is not None
    assert routing.model == "small"
    later += [said("Lima."), user(SIMPLE)]
    assert await routing.choose(request(*later)) == "small", "as after a fallback"
    later += [said("Quito."), user(COMPLEX)]
    assert await routing.choose(request(*later)) == "large"


async def test_opaque_parts_keep_their_provider(routing: Routing) -> None:
    turns = [user(COMPLEX), said("...", opaque="anthropic"), user(COMPLEX)]
    await routing.downgrade(request(*turns), COSTS, below=10, room=1, name="mixed")
    assert routing.model == "claude", "the cheaper one cannot read the history"


class KnownCosts(Budgets):
    """Budgets that know what a job could cost without a database, and apply to none."""

    def __init__(self) -> None:
        pass

    async def most_cost(self, new: NewJob) -> Decimal | None:
        return Decimal(COSTS[new.model])

    async def plan(self, new: NewJob) -> NewJob:
        return new


async def test_a_job_with_a_cheaper_model_is_logged_like_any_other(routing: Routing) -> None:
    admission = Admission(routing.registry, routing.window, router=routing.router, budgets=KnownCosts())
    principal = Principal.of(OWNER)
    new = NewJob(OWNER, "auto", 3, chat(COMPLEX), options=RequestOptions(store=False))
    refused = await admission.admit(principal, new)
    assert (refused.model, refused.log_level) == ("large", LogLevel.NONE)
    refusal = BudgetExceeded("no room", downgrades=True, amount=Decimal(10), room=Decimal(9))
    cheaper = await admission.downgrade(principal, new, refusal)
    assert (cheaper.model, cheaper.log_level) == ("middle", LogLevel.NONE)
