"""What is removed from the bodies of the request log: the rules of a project."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from shared.domain.field_types import contradiction, unicode_text
from shared.domain.linear_patterns import compile_linear

MAX_OWN_RULES = 50
MAX_WORDS = 200
MAX_REGIONS = 20


class RedactionKind(StrEnum):
    """What is found without rules of a project's own. The placeholder of a kind is its name in brackets: `[CARD]`."""

    # Numbers of payment cards, with a valid checksum (Luhn).
    CARD = "card"
    # International bank account numbers, with a valid checksum (ISO 13616).
    IBAN = "iban"
    EMAIL = "email"
    PHONE = "phone"
    # API keys, tokens, passwords beside their names, and private keys.
    SECRET = "secret"  # noqa: S105 the name of the kind


# Placeholders of Presidio's entities.
PRESIDIO_ENTITIES = ("person", "location", "organization")
_RESERVED = {*RedactionKind, *PRESIDIO_ENTITIES}

# The regions that `phonenumbers` knows (ISO 3166-1). A test compares them.
_REGIONS = (
    "AC AD AE AF AG AI AL AM AO AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BW BY BZ CA CC"
    " CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB"
    " GD GE GF GG GH GI GL GM GN GP GQ GR GT GU GW GY HK HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH"
    " KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV"
    " MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PR PS PT PW PY QA RE RO RS RU RW SA SB"
    " SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TA TC TD TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG US"
    " UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW"
)
PHONE_REGIONS = frozenset(_REGIONS.split())
DEFAULT_REGIONS = ("US", "GB", "DE", "FR", "ES", "JP")


def _known_region(region: str) -> str:
    if region not in PHONE_REGIONS:
        raise ValueError(f"unknown region {region[:8]!r}; use a code such as DE or US")
    return region


def _free_name(name: str) -> str:
    if name in _RESERVED:
        raise ValueError(f"{name!r} is the name of a kind; choose another one")
    return name


def _linear(pattern: str) -> str:
    compile_linear(pattern)
    return pattern


Region = Annotated[str, StringConstraints(min_length=2, max_length=2), AfterValidator(_known_region)]
Word = Annotated[
    str, StringConstraints(min_length=2, max_length=200, strip_whitespace=True), AfterValidator(unicode_text)
]


class OwnRule(BaseModel):
    """A rule of a project: words, or a regular expression. What it finds is replaced by its name: `[EMPLOYEE_ID]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$"), AfterValidator(_free_name)]
    words: tuple[Word, ...] | None = Field(
        None,
        min_length=1,
        max_length=MAX_WORDS,
        description="Whole words or phrases, in upper or lower case.",
        examples=[["Project Falcon"]],
    )
    pattern: Annotated[str, AfterValidator(unicode_text), AfterValidator(_linear)] | None = Field(
        None,
        description="A regular expression that takes linear time: its repetitions have upper bounds, and no"
        " repetition has another one inside.",
        examples=[r"\bE-[0-9]{6}\b"],
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.words is None) == (self.pattern is None):
            raise contradiction("words", "exactly one of words and pattern is required")
        return self


class RedactionRules(BaseModel):
    """What is removed. Without any rule, all kinds are."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "phone_regions": ["DE", "AT", "CH"],
                    "own": [
                        {"name": "employee_id", "pattern": r"\bE-[0-9]{6}\b"},
                        {"name": "codename", "words": ["Project Falcon"]},
                    ],
                }
            ]
        },
    )

    kinds: tuple[RedactionKind, ...] = Field(
        tuple(RedactionKind), max_length=len(RedactionKind), description="What is found by checksum or shape."
    )
    phone_regions: tuple[Region, ...] = Field(
        DEFAULT_REGIONS,
        max_length=MAX_REGIONS,
        description="Where phone numbers without a country code are from. Each region costs time.",
    )
    own: tuple[OwnRule, ...] = Field((), max_length=MAX_OWN_RULES, description="Rules of the project.")
    presidio: bool = Field(
        False,
        description="Also remove names of persons, places and organizations, with Microsoft Presidio, if it is"
        " installed.",
    )

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [rule.name for rule in self.own]
        if len(set(names)) < len(names):
            raise contradiction("own", "the names of rules must be different")
        return self


NO_OWN_RULES = RedactionRules()
