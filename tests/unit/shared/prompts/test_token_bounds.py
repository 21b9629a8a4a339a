"""The bounds of a text's tokens, its parts and what is remembered of them never change the result of counting."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as some
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Replace, Strip
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit

from shared.domain.request import GenerateRequest, Message
from shared.prompts import token_counter
from shared.prompts.known_counts import KnownCounts
from shared.prompts.token_bounds import MOST_EXPANSION, is_normal, token_bounds, unicode_forms
from shared.prompts.token_counter import AtLeast, TokenCounter
from tests.support.examples import example_count
from tests.support.tokenizers import KINDS, exact_count, tokenizer_folder

PARTS = some.sampled_from(
    [
        *("the", " river", " mill", " wheel", "水车", "café", "cafe\u0301", "\u0958", "====", "1234"),
        *("<|start|>", "<|end|>", "<|end|>!", "<|end", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x00"),
        *(".", "'s", "x", "😀", "\u200d"),
    ]
)
TEXTS = some.lists(PARTS | some.text(max_size=3), max_size=80).map("".join)


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, TokenCounter]]:
    folders = {kind: tokenizer_folder(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}
    return {kind: (folder, TokenCounter(folder)) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", KINDS)
@example_count(60, long=3000)
@hypothesis.given(text=TEXTS, enough=some.integers(1, 60), cut=some.floats(0, 1))
def test_a_text_has_no_fewer_tokens_than_the_bound(
    counters: dict[str, tuple[Path, TokenCounter]], kind: str, text: str, enough: int, cut: float
) -> None:
    folder, counter = counters[kind]
    bounds = token_bounds(Tokenizer.from_file(str(folder / "tokenizer.json")))
    assert bounds is not None
    start = int(cut * len(text))
    exact = exact_count(folder, text[start:])
    if counter.keeps(text):
        assert bounds.fewest(text, enough, start) <= exact
        assert exact <= len(text[start:].encode()) + text.count("<|") + 2, "the tokenizer may put a space before a part"
    assert exact <= MOST_EXPANSION * len(text.encode()) + 2


@pytest.mark.parametrize("kind", KINDS)
@example_count(60, long=3000)
@hypothesis.given(texts=some.lists(TEXTS, min_size=1, max_size=3), limit=some.integers(1, 120))
def test_a_limit_and_known_parts_do_not_change_the_result(
    counters: dict[str, tuple[Path, TokenCounter]], kind: str, texts: list[str], limit: int
) -> None:
    folder, counter = counters[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_counter, "SHORT_PIECE", 32)
        for text in ["<|start|>".join(texts[: number + 1]) for number in range(len(texts))]:
            exact = exact_count(folder, text)
            assert counter.count_text(text, add_special_tokens=False) == exact
            for project_id in (None, 1, 1, 2):
                counted = counter.count_text(text, limit, add_special_tokens=False, project_id=project_id)
                assert (counted == exact) if not isinstance(counted, AtLeast) else (limit <= counted <= exact)
                if isinstance(counted, AtLeast):
                    further = counted.count.up_to(2 * limit)
                    assert (further == exact) if not isinstance(further, AtLeast) else (2 * limit <= further <= exact)
                    assert counted.count.up_to(None) == exact
                assert counter.count_text(text, add_special_tokens=False, project_id=project_id) == exact


def test_long_texts_are_compared_with_a_limit_without_encoding_them(
    counters: dict[str, tuple[Path, TokenCounter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their words, or by their characters if these occur in short tokens only."""
    _, counter = counters["words"]
    encoded: list[str] = []
    pieces = token_counter._pieces

    def noted(text: str, size: int | None = None) -> list[str]:
        encoded.append(text)
        return list(pieces(text, size))

    monkeypatch.setattr(token_counter, "_pieces", noted)
    for text in ("pack my box " * 2000, "水车" * 5000, "zq" * 10_000):
        counted = counter.count_text(text, 4000)
        assert isinstance(counted, AtLeast), text[:20]
        assert counted >= 4000
    assert not encoded


def test_the_rest_of_a_text_is_not_encoded_once_its_words_decide(
    counters: dict[str, tuple[Path, TokenCounter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, counter = counters["words"]
    text = "thequick the " * 2000
    exact, encoded = exact_count(folder, text), 0
    bounds = token_bounds(Tokenizer.from_file(str(folder / "tokenizer.json")))
    assert bounds is not None
    limit = (exact + bounds.fewest(text, exact)) // 2
    pieces = token_counter._pieces

    def noted(text: str, size: int | None = None):  # type: ignore[no-untyped-def]
        nonlocal encoded
        for piece in pieces(text, size):
            encoded += len(piece)
            yield piece

    monkeypatch.setattr(token_counter, "_pieces", noted)
    counted = counter.count_text(text, limit)
    assert isinstance(counted, AtLeast)
    assert limit <= counted <= exact
    assert 0 < encoded < 0.75 * len(text)


def test_the_next_turn_of_a_conversation_counts_the_new_messages_only(
    counters: dict[str, tuple[Path, TokenCounter]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, counter = counters["words"]
    turns = [Message(role=("user", "assistant")[at % 2], content=f"the river {at} " * 20) for at in range(21)]
    earlier, now = GenerateRequest(messages=turns[:19]), GenerateRequest(messages=turns)
    encoded: list[str] = []
    pieces = token_counter._pieces

    def noted(text: str, size: int | None = None) -> list[str]:
        encoded.append(text)
        return list(pieces(text, size))

    monkeypatch.setattr(token_counter, "_pieces", noted)
    exact = counter.count(now)
    counter.count(earlier, None, 1)
    encoded.clear()
    assert counter.count(now, None, 1) == exact
    assert [part.split("\n")[0] for part in encoded] == ["assistant", "user"]
    encoded.clear()
    assert counter.count(now, None, 2) == exact
    assert len(encoded) >= 21, "another project's texts are not known"


def test_the_least_recently_used_numbers_are_forgotten() -> None:
    known = KnownCounts(kept=3)
    keys = [known.key(1, text) for text in ("a", "b" * 1000, "c", "d", "e", "f", "g")]
    for number, key in enumerate(keys):
        known.put(key, number)
        assert known.get(keys[0]) == 0, "it is used all the time"
    assert known.get(keys[1]) is None
    assert known.get(keys[-1]) == len(keys) - 1
    assert known.key(1, "a") != known.key(2, "a")
    assert known.key(1, "b" * 1000) == known.key(1, "b" * 1000) != known.key(1, "b" * 1001)


@pytest.mark.parametrize(
    ("normalizer", "kept", "longer"),
    [
        (None, "\ufdfa", None),
        (Replace(" ", "_"), "\ufdfa a", None),
        (Lowercase(), "\ufdfa", None),
        (NFKC(), "a 水", "\ufdfa"),
        (Normalizers([Strip(), NFKC()]), "a 水", "\ufdfa"),
    ],
)
def test_texts_that_a_normalizer_makes_longer_are_found(
    normalizer: Normalizers | None, kept: str, longer: str | None
) -> None:
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    forms = unicode_forms(tokenizer)
    assert is_normal(kept, forms)
    if longer is not None:
        assert not is_normal(longer, forms)
        assert len(unicodedata.normalize("NFKC", longer).encode()) == MOST_EXPANSION * len(longer.encode())


def test_tokenizers_that_remove_text_have_no_bounds() -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = WhitespaceSplit()
    assert token_bounds(tokenizer) is None
    tokenizer.pre_tokenizer = ByteLevel()
    tokenizer.normalizer = Strip()
    assert token_bounds(tokenizer) is None
