"""The `routes` of models.yaml: what they stand for, and error messages with line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.config.models.base import RegistryError
from shared.config.models.conditions import Conditions
from shared.config.models.loader import Registry, load_registry
from shared.config.models.routes import Mode
from shared.config.settings import REPOSITORY

GOOD = """\
models:
  - {name: small, engine: simulated, options: {max_model_len: 4096}}
  - {name: middle, engine: simulated}
  - {name: large, engine: simulated, modalities: [image]}
  - {name: new, engine: simulated}
routes:
  - name: auto
    models: [small, middle, large]
    rules:
      - {name: images, if: {images: true}, model: large}
      - {name: long, if: {input_tokens_over: 2000}, model: middle}
      - {name: free, if: {tier: [free, trial]}, model: small}
      - {name: busy, if: {predicted_wait_over_s: 10, of: small}, model: middle}
      - {name: words, if: {keywords: [translate], tools: false}, split: {small: 90, new: 10}}
    otherwise: complexity
    fallbacks: {small: [middle], middle: [large, new]}
    baseline: large
    sticky_s: 3600
"""


def load(folder: Path, content: str) -> Registry:
    file = folder / "models.yaml"
    file.write_text(content)
    return load_registry(file)


def test_routes_and_their_names(tmp_path: Path) -> None:
    registry = load(tmp_path, GOOD)
    (route,) = registry.routes
    assert route.candidates == ("small", "middle", "large", "new")
    assert [route.level(name) for name in route.candidates] == [0, 1, 2, None]
    assert route.fallbacks_of("small") == ("middle", "large", "new")
    assert route.fallbacks_of("large") == ()
    for name, mode in {"auto": Mode.BALANCED, "auto:cost": Mode.COST, "auto:quality": Mode.QUALITY}.items():
        requested = registry.route(name)
        assert requested is not None
        assert (requested.route, requested.mode) == (route, mode)
        assert registry.may_be_requested(name)
        assert name not in registry
    assert registry.route("small") is None
    assert registry.may_be_requested("small")
    assert registry.route("auto:best") is None
    assert not registry.may_be_requested("auto:best")


def test_a_file_without_routes(tmp_path: Path) -> None:
    registry = load(tmp_path, GOOD[: GOOD.index("routes:")])
    assert list(registry.routes) == []
    registry = load(tmp_path, GOOD)
    registry.replace(registry.models)
    assert registry.route("auto") is None


@pytest.mark.parametrize(
    ("right", "wrong", "line", "words"),
    [
        ("[small, middle, large]", "[small, huge]", 8, "models[1]: there is no model 'huge'; models are: small, "),
        ("model: middle}\n      - {name: free", "model: mid}\n      - {name: free", 11, "rules[1].model: there is no"),
        ("new: 10", "old: 10", 14, "rules[4].split.old: there is no model 'old'"),
        ("of: small", "of: tiny", 13, "rules[3].if.of: there is no model 'tiny'"),
        ("otherwise: complexity", "otherwise: simple", 15, "otherwise: there is no model 'simple'"),
        ("middle: [large, new]", "middle: [large, old]", 16, "fallbacks.middle[1]: there is no model 'old'"),
        ("{small: [middle]", "{tiny: [middle]", 16, "fallbacks.tiny: there is no model 'tiny'"),
        ("baseline: large", "baseline: best", 17, "baseline: there is no model 'best'"),
        ("[small, middle, large]", "[small, middle, small]", 8, "models[2]: 'small' is already a level"),
        ("new: 10", "new: 11", 14, "rules[4].split: the percentages must add up to 100, not 101"),
        ("new: 10", "new: 0", 14, "rules[4].split.new: Input should be greater than 0"),
        ("[large, new]", "[large, small]", 16, "fallbacks.small: a cycle: small -> middle -> small"),
        ("[large, new]", "[middle]", 16, "fallbacks.middle: a cycle: middle -> middle"),
        ("[large, new]}", "[large], large: [new], new: [middle]}", 16, "a cycle: middle -> large -> new -> middle"),
        ("- name: auto", "- name: small", 7, "name: 'small': requests for 'small' choose the model of this name"),
        ("name: new,", "name: 'auto:cost',", 7, "'auto': requests for 'auto:cost' choose the model of this name"),
        ("name: free,", "name: long,", 12, "rules[2].name: 'long' is declared twice"),
        ("name: free,", "name: complexity,", 12, "rules[2].name: 'complexity' is what decisions name"),
        (
            "tier: [free, trial]",
            "plan: [free]",
            12,
            "rules[2].if.plan: unknown condition; conditions are input_tokens_",
        ),
        ("tier: [free, trial]", "tier: []", 12, "rules[2].if.tier: Tuple should have at least 1 item"),
        ("tier: [free, trial]", "tools: maybe", 12, "rules[2].if.tools: Input should be a valid boolean"),
        ("tier: [free, trial]", "of: small", 12, "rules[2].if.of: belongs to predicted_wait_over_s"),
        (
            "{input_tokens_over: 2000}",
            "{input_tokens_over: 9, input_tokens_under: 10}",
            11,
            "rules[1].if.input_tokens_under: must be more than 10 with input_tokens_over: 9",
        ),
        ("model: small}", "model: small, split: {small: 100}}", 12, "rules[2]: give exactly one of `model` and"),
        (", model: small}", "}", 12, "rules[2]: give exactly one of `model` and `split`"),
        ("if: {images: true}, ", "", 11, "rules[1]: can never apply: rules[0] ('images') applies to all requests"),
        (
            "{tier: [free, trial]}",
            "{images: true, tools: true}",
            12,
            "rules[2]: can never apply: rules[0] ('images') applies to the same requests first",
        ),
        ("{tier: [free, trial]}", "{input_tokens_over: 3000}", 12, "rules[2]: can never apply: rules[1] ('long')"),
        (
            "{keywords: [translate], tools: false}",
            "{tools: false, tier: [trial]}",
            14,
            "rules[4]: can never apply: rules[2] ('free')",
        ),
        ("{images: true}, model: large", "{images: true}, model: small", 10, "'small' cannot serve requests with imag"),
        (
            "{input_tokens_over: 2000}, model: middle",
            "{input_tokens_over: 5000}, model: small",
            11,
            "rules[1].model: 'small' cannot serve prompts of more than 5000 tokens, because its max_model_len is 4096",
        ),
        ("if: {keywords: [translate], tools: false}, ", "", 15, "otherwise: can never apply: the rule 'words' applies"),
        ("    models: [small, middle, large]\n", "", 14, "otherwise: `complexity` chooses one of `models`"),
        ("rules:", "rulez:", 9, "routes[0].rulez: unknown field"),
        ("baseline: large", "fallback_wait_s: -1", 17, "fallback_wait_s: Input should be greater than or equal to 0"),
        ("small: 90, new: 10", "small: 90, tiny: 10", 14, "there is no model 'tiny'"),
        (
            "keywords: [translate], tools: false}, split: {small: 90",
            "images: true, tier: [x]}, split: {large: 90",
            14,
            "rules[4].split.new: 'new' cannot serve requests with images, so it would never get its share",
        ),
        (
            "keywords: [translate]",
            f"keywords: [{', '.join(f'word{number}' for number in range(1001))}]",
            14,
            "rules[4].if.keywords: Tuple should have at most 1000 items",
        ),
        ("sticky_s: 3600", "sticky_s: day", 18, "sticky_s: Input should be a valid integer"),
    ],
)
def test_an_error_names_line_and_field(tmp_path: Path, right: str, wrong: str, line: int, words: str) -> None:
    assert right in GOOD
    with pytest.raises(RegistryError) as error:
        load(tmp_path, GOOD.replace(right, wrong, 1))
    message = str(error.value)
    assert f"line {line}: " in message
    assert words in message


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("{name: auto}", "routes[0]: this route matches nothing; give it `models`, rules, or a model as `otherwise`"),
        (
            "{name: auto, rules: [{name: long, if: {input_tokens_over: 9}, model: middle}]}",
            "routes[0]: requests that no rule applies to have no model; set `otherwise` or `models`",
        ),
        (
            "{name: auto, otherwise: small, rules: [{name: a, if: {predicted_wait_over_s: 1}, model: middle}]}",
            "rules[0].if.predicted_wait_over_s: needs `of`",
        ),
        ("{name: auto, models: [small]}\n  - {name: auto, models: [small]}", "routes[1].name: 'auto': requests for"),
        (
            "{name: auto, models: [small], rules: [{name: a, if: {keywords: ["
            + ", ".join(["word"] * 1000)
            + "]}, model:"
            " new}, {name: b, if: {keywords: [other]}, model: new}]}",
            "routes[0].rules: the rules of a route may have 1000 keywords in all; these have 1001",
        ),
        ("{name: auto, models: [small], fallback_wait_s: 5}", "fallback_wait_s: needs `fallbacks`"),
        ("{name: auto:cost, models: [small]}\n  - {name: auto, models: [small]}", "choose the route 'auto:cost'"),
    ],
)
def test_routes_that_lead_nowhere(tmp_path: Path, route: str, words: str) -> None:
    models = GOOD[: GOOD.index("  - name: auto")]
    with pytest.raises(RegistryError) as error:
        load(tmp_path, f"{models}  - {route}\n")
    assert words in str(error.value)
    assert "line " in str(error.value)


def test_a_route_may_have_only_rules_or_only_a_default(tmp_path: Path) -> None:
    models = GOOD[: GOOD.index("  - name: auto")]
    routes = (
        "  - {name: trial, rules: [{name: all, split: {small: 12.5, new: 87.5}}]}\n  - {name: b, otherwise: small}\n"
    )
    registry = load(tmp_path, models + routes)
    assert [route.candidates for route in registry.routes] == [("small", "new"), ("small",)]


def test_a_rule_for_long_prompts_may_name_a_model_that_shortens_them(tmp_path: Path) -> None:
    window = "options: {max_model_len: 4096}, context: {strategy: sliding_window}}"
    content = GOOD.replace("options: {max_model_len: 4096}}", window)
    content = content.replace("{input_tokens_over: 2000}, model: middle", "{input_tokens_over: 5000}, model: small")
    assert load(tmp_path, content).routes[0].rules[1].model == "small"


def test_the_examples_are_valid(tmp_path: Path) -> None:
    """The example file, and the routes in the documentation."""
    example = load_registry(REPOSITORY / "examples" / "routes.yaml")
    assert [route.name for route in example.routes] == ["auto", "trial"]
    page = (REPOSITORY / "docs" / "routing.md").read_text()
    routes = page.partition("```yaml\n")[2].partition("```")[0]
    (route,) = load(tmp_path, GOOD[: GOOD.index("routes:")] + routes).routes
    assert {name for rule in route.rules for name in rule.conditions.names} <= Conditions.model_fields.keys()
    for name in Conditions.model_fields:
        assert f"`{name}" in page, f"docs/routing.md does not describe the condition {name}"


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    content = GOOD.replace("new: 10", "new: 11").replace("baseline: large", "baseline: small")
    content = content.replace("name: free,", "name: long,")
    with pytest.raises(RegistryError) as error:
        load(tmp_path, content)
    assert len(str(error.value).splitlines()) == 2
