"""Names found by Presidio: with a stand-in for what it finds, and with itself, where the extra is installed."""

from __future__ import annotations

import re
import sys
from threading import Thread

import pytest

from shared.domain.redaction_rules import RedactionRules
from shared.privacy import presidio
from shared.privacy.presidio import PresidioMissing
from shared.privacy.redaction import Redactor

RULES = RedactionRules(presidio=True)
with_presidio = pytest.mark.skipif(not presidio.is_installed(), reason="the extra `presidio` is not installed")


def test_entities_of_several_kinds_are_replaced_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where they would be without the ones before."""
    names = {"Jane Doe": "person", "Berlin": "location", "Acme Corp": "organization"}

    def found(text: str) -> list[tuple[int, int, str]]:
        return sorted((found.start(), found.end(), kind) for name, kind in names.items()
                      for found in re.finditer(name, text))  # fmt: skip

    monkeypatch.setattr(presidio, "entities", found)
    result = Redactor(RULES).redact_text("Berlin: Jane Doe (jane@acme.org) of Acme Corp, Berlin")
    assert result.text == "[LOCATION]: [PERSON] ([EMAIL]) of [ORGANIZATION], [LOCATION]"
    assert result.counts == {"email": 1, "location": 2, "person": 1, "organization": 1}


def test_without_the_package_or_a_model_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above all, no model is downloaded when it is needed, in the middle of a request."""
    for missing in ("presidio_analyzer", "en_core_web_"):
        monkeypatch.setattr(presidio, "_is_package", lambda name, missing=missing: not name.startswith(missing))
        assert not presidio.is_installed()
        presidio._analyzer.cache_clear()
        if missing == "presidio_analyzer":
            monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
        with pytest.raises(PresidioMissing, match=re.escape("pip install '.[presidio]', and python -m spacy download")):
            Redactor(RULES).redact_text("Jane Doe lives in Berlin")


@pytest.mark.parametrize("words", ["a word ", "line\n", "x", ""])
def test_long_texts_are_searched_in_parts_that_do_not_cut_words(words: str) -> None:
    text = words * 30_000
    parts = [text[start:end] for start, end in presidio._pieces(text)]
    assert "".join(parts) == text
    assert all(0 < len(part) <= presidio.PIECE for part in parts)
    assert words == "x" or all(part[-1].isspace() for part in parts)


@with_presidio
def test_names_places_and_organizations_are_found() -> None:
    text = "My name is Jane Miller, I live in Berlin and work for Microsoft. Write to jane@example.com."
    result = Redactor(RULES).redact_text(text)
    assert result.text == ("My name is [PERSON], I live in [LOCATION] and work for [ORGANIZATION]. Write to [EMAIL].")
    assert Redactor(RULES).redact_text(result.text).text == result.text


@with_presidio
def test_a_long_text_is_searched_to_its_end() -> None:
    text = f"{'This is a sentence. ' * 1_500}My name is Jane Miller."
    assert "Jane Miller" not in Redactor(RULES).redact_text(text).text


@with_presidio
def test_threads_can_search_at_the_same_time() -> None:
    redactor, found = Redactor(RULES), list[str]()
    threads = [
        Thread(target=lambda: found.append(redactor.redact_text("I met Jane Miller in Paris.").text)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["I met [PERSON] in [LOCATION]."] * 4
