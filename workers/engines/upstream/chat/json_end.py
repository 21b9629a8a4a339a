"""Finds the end of a JSON object, array or string that arrives in parts, in time proportional to its length."""

from __future__ import annotations

import re

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_WHITE_SPACE = " \t\r\n"


class JsonEnd:
    """Where a value ends, by its brackets and quotes. Whether it is valid JSON is not checked.

    `reached`: it has ended. `passed`: something other than white space follows.
    """

    __slots__ = ("_depth", "_is_escaped", "_is_string", "passed", "reached")

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = self._is_escaped = False
        self.reached = self.passed = False

    def read(self, part: str) -> None:
        """Take the next part."""
        at = 0
        while at < len(part) and not self.reached:
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            mark = (_IN_STRING if self._is_string else _OUTSIDE).search(part, at)
            if mark is None:
                return
            at = mark.end()
            self._take(mark[0])
        if self.reached and not self.passed:
            self.passed = bool(part[at:].strip(_WHITE_SPACE))

    def _take(self, mark: str) -> None:
        if mark == "\\":
            self._is_escaped = True
            return
        if mark == '"':
            self._is_string = not self._is_string
        else:
            self._depth += 1 if mark in "{[" else -1
        self.reached = not self._is_string and self._depth <= 0
