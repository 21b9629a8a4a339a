"""Translates xgrammar's structural tags, which constrain tool calls, into llguidance's grammars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import llguidance
import orjson


class Untranslatable(Exception):
    """A structural tag has a part without an equivalent."""


def to_llguidance(tag: dict[str, Any], special_tokens: Iterable[str], schema: Callable[[Any], Any]) -> str:
    """Translate a structural tag whose arguments are JSON.

    `special_tokens` are the tokenizer's: in a grammar their text does not match the token. `schema` prepares each JSON
    Schema.

    Raises:
        Untranslatable: it has a part without an equivalent, such as arguments in XML.
    """
    translation = _Translation(frozenset(special_tokens), schema)
    format_ = tag.get("format")
    if not isinstance(format_, dict):
        raise Untranslatable("no format")
    if format_.get("type") == "triggered_tags":
        return translation.triggered(format_)
    return str(llguidance.LLMatcher.grammar_from_lark(f"start: {translation.rule(format_)}\n" + translation.schemas()))


def special_tokens(tokenizer: Any) -> set[str]:
    """The texts of a tokenizer's special tokens.

    Raises:
        Untranslatable: it is not one of Hugging Face's, and does not say.
    """
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if added is None:
        raise Untranslatable("tokenizer")
    return {token.content for token in added.values() if token.special}


class _Translation:
    def __init__(self, special_tokens: frozenset[str], schema: Callable[[Any], Any]) -> None:
        self._special_tokens = special_tokens
        self._schema = schema
        self._schemas: dict[bytes, int] = {}

    def rule(self, part: dict[str, Any]) -> str:
        """An expression of a Lark grammar."""
        match part:
            case {"type": "const_string", "value": str(text)}:
                return self._literal(text)
            case {"type": "regex", "pattern": str(pattern)} if "/" not in pattern and not part.get("excludes"):
                return f"/{pattern}/"
            case {"type": "json_schema", "style": "json", "json_schema": schema} if not part.get("any_order"):
                prepared = orjson.dumps(self._schema(schema))
                return f"schema{self._schemas.setdefault(prepared, len(self._schemas))}"
            case {"type": "sequence", "elements": list(elements)}:
                return f"({' '.join(map(self.rule, elements))})"
            case {"type": "tag", "begin": str(begin), "content": dict(content), "end": str(end)}:
                return f"({self._literal(begin)} {self.rule(content)} {self._literal(end)})"
            case {"type": "tags_with_separator", "tags": list(tags), "separator": str(separator)} if tags:
                one = f"({' | '.join(map(self.rule, tags))})"
                more = "" if part["stop_after_first"] else f" ({self._literal(separator)} {one})*"
                return f"({one}{more})" if part["at_least_one"] else f"({one}{more})?"
        raise Untranslatable(part.get("type"))

    def schemas(self) -> str:
        """The rules that `rule` refers to."""
        return "".join(f"schema{number}: %json {text.decode()}\n" for text, number in self._schemas.items())

    def triggered(self, part: dict[str, Any]) -> str:
        """Free text, in which a tag follows each trigger."""
        if part["at_least_one"] or part["stop_after_first"] or part["excludes"]:
            raise Untranslatable("triggered_tags")
        tags = []
        for tag in part["tags"]:
            match tag:
                case {"begin": str(begin), "content": {"type": "json_schema", "style": "json", "json_schema": schema},
                      "end": str(end)}:  # fmt: skip
                    triggers = [trigger for trigger in part["triggers"] if begin.startswith(trigger)]
                    if not triggers:
                        raise Untranslatable(begin)
                    self._literal(begin + end)
                    tags.append(
                        llguidance.StructTag(trigger=triggers[0], begin=begin, grammar=self._schema(schema), end=end)
                    )
                case _:
                    raise Untranslatable("tag")
        return str(llguidance.StructTag.to_grammar(tags, assume_special=False))

    def _literal(self, text: str) -> str:
        if any(token in text for token in self._special_tokens):
            raise Untranslatable("special token")
        return orjson.dumps(text).decode()
