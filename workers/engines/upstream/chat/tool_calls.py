"""Keeps the tool calls of one choice apart.

A fragment belongs to a call by its id and its index. Servers leave out either, repeat them, give the same index or the
same id to all calls, or a new id to each fragment; then the name and the arguments so far decide:

- A fragment without a name never begins a call after the first, unless its index is new and it has an id.
- A fragment with a name begins a call if the call that it could continue has complete arguments, or another name.
- A name may come in pieces, if they are the beginning of the name of a tool in the request.

The calls are emitted one after the other: no API dialect can express fragments of a call after the next has begun.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any
from uuid import uuid4

import orjson

from shared.domain.events import CallDelta
from workers.engines.upstream.call_arguments import (
    NO_ARGUMENTS,
    arguments_text,
    is_object,
    may_be_encoded,
    plain_arguments,
)
from workers.engines.upstream.chat.json_end import JsonEnd


class ToolCalls:
    """The calls of one choice."""

    def __init__(self, tools: Collection[str] = ()) -> None:
        """`tools`: the names of those in the request."""
        self._tools = tools
        self._calls: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._by_index: dict[int, _Call] = {}
        self._ids: set[str] = set()
        # The call that is being emitted, and the number of the next one.
        self._at = 0
        self._number = 0
        # `extra_content` of calls that have been emitted, by their emitted ids.
        self._extras: list[tuple[str, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def emitted(self) -> bool:
        """Whether a call has been emitted, or a part of one."""
        return self._number > 0

    def add(self, fragments: Any) -> list[CallDelta]:
        """Take the fragments of one chunk; returns what can be emitted.

        Raises:
            TypeError, AttributeError: they are not fragments of tool calls.
        """
        for fragment in [fragments] if isinstance(fragments, dict) else fragments:
            if fragment is None:
                continue
            function = fragment.get("function")
            if function is None:
                function = fragment if "name" in fragment or "arguments" in fragment else {}
            index, call_id = fragment.get("index"), fragment.get("id")
            name, arguments = function.get("name"), function.get("arguments")
            extra = fragment.get("extra_content")
            if not extra and not (call_id or name) and index.__class__ is int and (call := self._by_index.get(index)):
                call.append(arguments)
                continue
            self._take(
                _index(index),
                "" if call_id is None else str(call_id),
                "" if name is None else str(name),
                arguments,
                extra,
            )
        return self._emit()

    def take_extras(self) -> list[tuple[str, Any]]:
        """The `extra_content` of calls that have been emitted since, each with the id of its call."""
        extras, self._extras = self._extras, []
        return extras

    def close(self, *, truncated: bool = False) -> list[CallDelta]:
        """End the calls; returns what was held back. A call without arguments gets `{}` unless it was truncated."""
        deltas = self._emit(closing=True, truncated=truncated)
        self._at = len(self._calls)
        return deltas

    def _take(self, index: int | None, call_id: str, name: str, arguments: Any, extra: Any) -> None:
        call = self._continued(index, call_id, name, arguments)
        if call is None:
            if not (call_id or name or arguments):
                return
            call = _Call(call_id)
            self._calls.append(call)
            if index is not None:
                self._by_index[index] = call
        if call_id and call.server_id in ("", call_id):
            call.server_id = call_id
            self._by_id[call_id] = call
        call.name = self._name_after(call, name) or call.name
        call.append(arguments)
        if extra and call.emitted_id:
            self._extras.append((call.emitted_id, extra))
        elif extra:
            call.extra = extra

    def _continued(self, index: int | None, call_id: str, name: str, arguments: Any) -> _Call | None:
        """The call that a fragment continues; None if it begins a call."""
        if not self._calls:
            return None
        by_id = self._by_id.get(call_id) if call_id else None
        at_index = None if index is None else self._by_index.get(index)
        last = self._calls[-1]
        if by_id is not None:
            if at_index is not None and at_index.server_id == call_id:
                by_id = at_index
            is_new_index = index is not None and at_index is None
            begins = name and by_id.complete and (is_new_index or by_id.differs(arguments))
            return None if begins else by_id
        call = at_index if index is not None and (at_index or name or call_id) else last
        if call is None:  # a new index
            return None
        if not name:
            return call
        if call_id and call.server_id:  # another id
            return call if call.name == name and call.begun and not call.complete else None
        if self._name_after(call, name) is None:
            return None
        return None if call.complete and call.differs(arguments) else call

    def _name_after(self, call: _Call, name: str) -> str | None:
        """The name of a call after a fragment with this name; None if it is that of another call."""
        if not call.name or not name or call.name == name:
            return call.name or name
        if call.begun or (call.name in self._tools and name in self._tools):
            return None
        if self._begins_a_name(joined := call.name + name):
            return joined
        return name if name.startswith(call.name) and self._begins_a_name(name) else None

    def _begins_a_name(self, text: str) -> bool:
        return any(tool.startswith(text) for tool in self._tools)

    def _is_named(self, call: _Call, *, ends: bool) -> bool:
        """Whether no more of a call's name can follow."""
        is_whole = (
            ends or call.begun or not any(tool != call.name and tool.startswith(call.name) for tool in self._tools)
        )
        return bool(call.name) and (is_whole or call.number is not None)

    def _emit(self, *, closing: bool = False, truncated: bool = False) -> list[CallDelta]:
        deltas: list[CallDelta] = []
        while self._at < len(self._calls):
            call = self._calls[self._at]
            has_next = self._at + 1 < len(self._calls)
            if not self._is_named(call, ends=closing or has_next) and (not closing or not call.begun):
                if not closing:
                    break
                self._at += 1  # a call without a name and arguments cannot be executed
                continue
            ends = closing or (has_next and call.complete)
            text = call.pending(ends=ends, fill=closing and not (truncated and not has_next))
            if call.number is None:
                call.number = self._number
                self._number += 1
                call.emitted_id = self._unique_id(call.server_id)
                deltas.append(CallDelta(call.number, call.emitted_id, call.name, text))
                if call.extra is not None:
                    self._extras.append((call.emitted_id, call.extra))
            elif text:
                deltas.append(CallDelta(call.number, arguments=text))
            if not ends:
                break
            self._at += 1
        return deltas

    def _unique_id(self, server_id: str) -> str:
        call_id = server_id if server_id and server_id not in self._ids else f"call_{uuid4().hex[:24]}"
        self._ids.add(call_id)
        return call_id


class _Call:
    """One call. `_parts` are its arguments so far, of which `_sent` parts have been emitted.

    `_cumulative`: each fragment has all the arguments so far. `_end` has read `_read` parts of them. `_is_valid`:
    they are valid JSON up to their end, None before it is found. Nothing reads all of them for each fragment.
    """

    __slots__ = (
        "_cumulative",
        "_end",
        "_first",
        "_is_valid",
        "_may_be_null",
        "_parts",
        "_read",
        "_sent",
        "_size",
        "emitted_id",
        "extra",
        "name",
        "number",
        "server_id",
    )

    def __init__(self, server_id: str) -> None:
        self.server_id = server_id
        self.name = self.emitted_id = ""
        self.extra: Any = None
        self.number: int | None = None
        self._sent = 0
        self._cumulative = False
        self._clear()

    def _clear(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        # The first character that is no white space.
        self._first = ""
        self._may_be_null = True
        self._end = JsonEnd()
        self._read = 0
        self._is_valid: bool | None = None

    @property
    def begun(self) -> bool:
        return bool(self._parts)

    @property
    def arguments(self) -> str:
        return "".join(self._parts)

    @property
    def complete(self) -> bool:
        """Whether the arguments so far are a JSON object or array, also if they are encoded twice, or null."""
        if self._is_valid is None and self._first in ("{", "[", '"'):
            self._find_end()
        return bool(self._is_valid) and not self._end.passed

    def _find_end(self) -> None:
        last = self._parts[-1][-1]
        if last not in '}]"' and not last.isspace():
            return
        for part in self._parts[self._read :]:
            self._end.read(part)
        self._read = len(self._parts)
        if self._end.reached:
            self._is_valid = _is_json(self.arguments)

    def differs(self, arguments: Any) -> bool:
        """Whether these are complete arguments, other than those so far."""
        text = arguments_text(arguments)
        if not text or not is_object(plain_arguments(text)):
            return False
        return len(text) != self._size or text != self.arguments

    def append(self, arguments: Any) -> None:
        """Append a fragment. Of arguments that repeat all that came before, only the rest is new."""
        text = arguments_text(arguments)
        if not text:
            return
        if self._parts and text[:1] in ("{", '"'):
            if not self._sent and self._parts in (
                [NO_ARGUMENTS],
                ["null"],
            ):  # the placeholder of a call whose arguments follow
                self._clear()
            elif self.complete:
                return
            elif len(text) >= self._size and text.startswith(so_far := self.arguments):
                self._cumulative = self._cumulative or _repeats(so_far, text)
                if self._cumulative:
                    text = text[len(so_far) :]
                    if not text:
                        return
        self._parts.append(text)
        self._size += len(text)
        self._first = self._first or text.lstrip()[:1]
        if self._first == "n" and self._may_be_null and not text.isspace():
            so_far = self.arguments.strip()
            self._may_be_null, self._is_valid = may_be_encoded(so_far), so_far == "null"
        elif self._is_valid:
            self._end.read(text)

    def pending(self, *, ends: bool, fill: bool) -> str:
        """Arguments to emit. What may change is held back until the call `ends`.

        `fill` in `{}` for a call without arguments.
        """
        is_held = not self._sent and self._may_change
        if is_held and not ends:
            return ""
        if fill and not self._first:
            return NO_ARGUMENTS
        text = "".join(self._parts[self._sent :])
        self._sent = len(self._parts)
        return plain_arguments(text) if is_held else text

    @property
    def _may_change(self) -> bool:
        """Whether the arguments so far may be a placeholder, null, or encoded twice."""
        if self._first == "n":
            return self._may_be_null
        return self._first == '"' or (len(self._parts) == 1 and self._parts[0] == NO_ARGUMENTS)


def _index(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 10 else None
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _repeats(so_far: str, text: str) -> bool:
    """Whether `text`, which starts with `so_far`, cannot follow it: the JSON would end inside the repeated part."""
    try:
        json.loads(so_far + text)
    except json.JSONDecodeError as error:
        return error.pos < 2 * len(so_far) and not error.msg.startswith("Unterminated")
    return False
