"""The `price` of models.yaml: what it stands for, and error messages that name the field."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from shared.config.models.base import RegistryError
from shared.config.models.loader import Registry, load_registry
from shared.config.models.prices import price_lists
from shared.domain.prices import NOT_PRICED, PriceList, Rates

OWN = "engine: simulated"
OPENAI = "engine: openai\n    preset: openai\n    model: gpt-5"
CLAUDE = "engine: anthropic\n    model: claude-haiku-5-5"
ADAPTER = """\
  - name: tone
    adapter_of: m
    adapter: org/tone
"""


def load(folder: Path, price: str, model: str = OWN, more: str = "") -> Registry:
    file = folder / "models.yaml"
    file.write_text(f"models:\n  - name: m\n    {model}\n    price: {price}\n{more}")
    return load_registry(file)


def lists(folder: Path, price: str, model: str = OWN) -> list[PriceList]:
    return price_lists(load(folder, price, model)["m"].price or [])


def rates(*values: str | None) -> Rates:
    return Rates(*(None if value is None else Decimal(value) for value in values))


def test_prices_of_tokens(tmp_path: Path) -> None:
    price = (
        "{input: 0.15, cache_read: 0.015, cache_write_5m: 0.1875, cache_write_1h: 0.3, output: 0.6, reasoning: 7e-1}"
    )
    steps = ((0, rates("0.15", "0.015", "0.1875", "0.3", "0.6", "0.7")),)
    assert lists(tmp_path, price) == [PriceList("default", steps)]


def test_a_rate_that_is_not_set_is_not_priced(tmp_path: Path) -> None:
    steps = ((0, rates("0", None, None, None, "1", None)),)
    assert lists(tmp_path, "{input: 0, output: 1}") == [PriceList("default", steps)]


def test_a_gpu_hour_at_its_measured_capacity(tmp_path: Path) -> None:
    """$3.60 an hour are $0.001 a second, in which 2,000 tokens are generated, or 10,000 read."""
    own = "{gpu_hour: 3.6, tokens_per_s: 2000, input_tokens_per_s: 10000}"
    assert lists(tmp_path, own) == [PriceList("default", ((0, rates("0.1", "0", None, None, "0.5", None)),))]
    # The output carries all of the cost.
    output = "{gpu_hour: 3.6, tokens_per_s: 2000}"
    assert lists(tmp_path, output) == [PriceList("default", ((0, rates("0", "0", None, None, "0.5", None)),))]


def test_service_tiers_and_long_inputs(tmp_path: Path) -> None:
    price = """
      input: 2
      output: 8
      long_inputs:
        - {from_input_tokens: 200001, input: 4, output: 12}
        - {from_input_tokens: 100001, input: 3, output: 10}
      tiers:
        flex: {input: 1, output: 4, long_inputs: [{from_input_tokens: 100001, input: 2, output: 5}]}
    """
    none = (None, None, None)
    assert lists(tmp_path, price, OPENAI) == [
        PriceList(
            "default",
            (
                (0, rates("2", *none, "8", None)),
                (100001, rates("3", *none, "10", None)),
                (200001, rates("4", *none, "12", None)),
            ),
        ),
        PriceList("flex", ((0, rates("1", *none, "4", None)), (100001, rates("2", *none, "5", None)))),
    ]


def test_prices_with_dates_are_in_the_order_of_their_dates(tmp_path: Path) -> None:
    """A tier that a later price does not have is not priced from then on."""
    price = """
      - {input: 3, output: 3, valid_from: 2026-03-01T12:00:00+02:00}
      - {input: 1, output: 1, tiers: {batch: {input: 0.5, output: 0.5}}}
      - {input: 2, output: 2, valid_from: 2026-02-01, tiers: {batch: {input: 0.25, output: 0.25}}}
    """
    february, march = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, 10, tzinfo=UTC)
    found = [(one.tier, one.valid_from, one.steps[0][1].input_fresh) for one in lists(tmp_path, price, CLAUDE)]
    assert found == [
        ("default", None, 1),
        ("batch", None, Decimal("0.5")),
        ("default", february, 2),
        ("batch", february, Decimal("0.25")),
        ("default", march, 3),
        ("batch", march, None),
    ]
    assert lists(tmp_path, price, CLAUDE)[-1].steps == NOT_PRICED


@pytest.mark.parametrize(
    ("price", "words"),
    [
        ("{}", "price.input: this field is required"),
        ("{input: 1}", "price.output: this field is required"),
        ("{input: -1, output: 1}", "price.input: Input should be greater than or equal to 0"),
        ("{input: yes, output: 1}", "price.input: must be a number"),
        ("{input: free, output: 1}", "price.input: Input should be a valid decimal"),
        ("{input: .inf, output: 1}", "price.input: Input should be a finite number"),
        ("{input: 1, outputs: 1}", "price.outputs: unknown field"),
        ("12", "price: must be a mapping, or a list of mappings with valid_from"),
        ("[]", "price: List should have at least 1 item after validation, not 0"),
        ("{input: 1, output: 1, valid_from: soon}", "price.valid_from: must be a date such as 2026-01-01"),
        ("{gpu_hour: 3}", "price.tokens_per_s: this field is required with gpu_hour"),
        ("{gpu_hour: 0, tokens_per_s: 9}", "price.gpu_hour: Input should be greater than 0"),
        ("{gpu_hour: 3, tokens_per_s: 9, output: 1}", "price.output: cannot be combined with gpu_hour"),
        ("{input: 1, output: 1, tokens_per_s: 9}", "price.tokens_per_s: has no effect without gpu_hour; remove it"),
        (
            "{input: 1, output: 1, long_inputs: [{from_input_tokens: 9, input: 1}]}",
            "price.long_inputs[0].output: this field is required",
        ),
        (
            "{input: 1, output: 1, long_inputs: [{from_input_tokens: 9, input: 1, output: 1},"
            " {from_input_tokens: 9, input: 2, output: 1}]}",
            "price.long_inputs[1].from_input_tokens: 9 is declared twice",
        ),
        ("{input: 1, output: 1, tiers: {bulk: {input: 1, output: 1}}}", "price.tiers.bulk: unknown service tier"),
        ("{input: 1, output: 1, tiers: {flex: {input: 1}}}", "price.tiers.flex.output: this field is required"),
        (
            "{input: 1, output: 1, tiers: {flex: {input: 1, output: 1}}}",
            "price.tiers: has no effect on the engine simulated, whose answers report no service tier; remove it",
        ),
        (
            "[{input: 1, output: 1, valid_from: 2026-01-01}, {input: 2, output: 1, valid_from: 2026-01-01T00:00:00Z}]",
            "price[1].valid_from: two prices hold from 2026-01-01T00:00:00+00:00; give each of them another valid_from",
        ),
        ("[{input: 1, output: 1}, {input: 2, output: 1}]", "price[1].valid_from: two prices hold without valid_from"),
        ("[{input: 1, output: 1}, {valid_from: 2026-01-01, input: 1}]", "price[1].output: this field is required"),
    ],
)
def test_an_error_names_the_field(tmp_path: Path, price: str, words: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load(tmp_path, price)
    assert str(caught.value).startswith(f"{tmp_path}/models.yaml, line 4: models[0].{words}")


@pytest.mark.parametrize("model", [OPENAI, CLAUDE])
def test_a_provider_charges_for_tokens(tmp_path: Path, model: str) -> None:
    with pytest.raises(RegistryError, match=r"models\[0\]\.price\.gpu_hour: \w+ charges for tokens"):
        load(tmp_path, "{gpu_hour: 3, tokens_per_s: 9}", model)


def test_names_of_other_systems_are_recognized(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"price\.input_cost_per_token: unknown field; use price\.input"):
        load(tmp_path, "{input_cost_per_token: 0.1}")


def test_an_adapter_costs_what_its_base_costs_unless_it_has_a_price(tmp_path: Path) -> None:
    base = load(tmp_path, "{input: 1, output: 2}", more=ADAPTER)
    assert base["tone"].price == base["m"].price is not None
    own = load(tmp_path, "{input: 1, output: 2}", more=ADAPTER + "    price: [{input: 3, output: 4}]\n")
    assert price_lists(own["tone"].price or []) == [PriceList("default", ((0, rates("3", *(None,) * 3, "4")),))]
    assert own["tone"].fingerprint == base["tone"].fingerprint


def test_the_price_of_an_adapter_has_to_apply_to_its_base(tmp_path: Path) -> None:
    tiers = "    price:\n      input: 3\n      output: 4\n      tiers: {flex: {input: 1, output: 1}}\n"
    with pytest.raises(RegistryError, match=r"line 11: models\[1\]\.price\.tiers: has no effect on the engine sim"):
        load(tmp_path, "{input: 1, output: 2}", more=ADAPTER + tiers)


def test_a_price_is_no_part_of_the_summary(tmp_path: Path) -> None:
    assert load(tmp_path, "{input: 1, output: 2}")["m"].summary == {"engine": "simulated"}
