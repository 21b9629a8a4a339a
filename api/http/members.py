"""Normalizes JSON bodies before validation, in the same way for all dialects and at every depth.

- Members that the schema does not know are dropped and reported, or rejected if they would change the answer.
- Members that are null, and optional ones that are `[]` or `{}`, are dropped: clients send them for unset parameters.
  The exceptions are client data and fields with `EmptyIsValue`.
- Integral floats become integers where the schema expects integers: JSON has one type of number.

A JSON Merge Patch (RFC 7396) is left as it is: null has a meaning there, and an unknown member is an error.

A `Shape` is compiled from a pydantic model, once per route. Data that belongs to the client, such as JSON Schemas, is
left unchanged.
"""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import quote

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from shared.domain.errors import InvalidRequest
from shared.telemetry.definitions.labels import OTHER
from shared.telemetry.metrics import Metrics

HEADER = "x-headrace-ignored"
MAX_NAMES = 20
MAX_HEADER_BYTES = 1024
MAX_NAME = 64
# The class variable in which a schema declares its `MemberRules`.
RULES = "member_rules"
# The class variable by which a schema declares that it is a merge patch.
MERGE_PATCH = "is_merge_patch"
# The member of a request with parameters of the model's provider.
EXTRA_BODY = "extra_body"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a member that the schema does not know is rejected, and the values with which it is ignored instead."""

    reason: str
    harmless: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class MemberRules:
    """The known members of a dialect that its schema does not have. Paths are written as `tools[].strict`.

    `effective`: members of the schema, and the only values that have an effect; others are ignored.
    `significant`: members of the schema that have a meaning only with some values. With another value they are treated
    as if the schema did not have them.
    `droppable`: lists of objects whose types the schema knows only in part. The others are ignored if any remain.
    """

    refused: Mapping[str, Refusal] = field(default_factory=dict)
    ignored: Collection[str] = ()
    effective: Mapping[str, Collection[Any]] = field(default_factory=dict)
    significant: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    droppable: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class JsonForm:
    """Annotation of a field: its type in the request, if a validator of the model converts it."""

    type: Any


@dataclass(frozen=True, slots=True)
class EmptyIsValue:
    """Annotation of an optional field: `{}` turns on what it describes, with the defaults."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A normalized body, and the paths of the ignored members, as far as they fit into the header."""

    body: Any
    ignored: tuple[str, ...] = ()


class MemberReader:
    """Normalizes bodies, and counts the ignored members."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        refuse_unknown: bool,
        extra_names: Callable[[str], Collection[str]] = lambda _: (),
    ) -> None:
        """`refuse_unknown`: reject members that would be ignored. `extra_names`: the names that a model allows in
        `extra_body`; they are accepted as members of the request too."""
        self._metrics = metrics
        self._refuse_unknown = refuse_unknown
        self._extra_names = extra_names

    def read(self, shape: Shape, body: Any, *, counted: bool = True) -> Reading:
        """Normalize a body. `counted`: whether ignored members count in the metrics.

        Raises:
            InvalidRequest: a member would change the answer and is not supported, or is unknown and must be rejected.
        """
        if shape.is_merge_patch:
            return Reading(body)
        found = _Found(self._refuse_unknown)
        if shape.takes_extra_body and type(body) is dict:
            body = self._with_extra_body(shape, body)
        try:
            body = shape.root.read(body, found)
        except _RejectedError as rejected:
            raise InvalidRequest(f"{rejected.path}: {rejected.reason}", param=rejected.path) from None
        if not found.paths:
            return Reading(body)
        if counted:
            for label in {path if path in shape.known else OTHER for path in found.paths}:
                self._metrics.ignored_parameters.labels(label).inc()
        return Reading(body, tuple(found.paths))

    def _with_extra_body(self, shape: Shape, body: dict[str, Any]) -> dict[str, Any]:
        """Collect the members that the model allows in `extra_body`: OpenAI's SDK sends them beside the others."""
        model, given = body.get("model"), body.get(EXTRA_BODY)
        names = self._extra_names(model) if isinstance(model, str) else ()
        extra = {name: body[name] for name in names if name in body and name not in shape.members}
        if not extra or not (given is None or isinstance(given, dict)):
            return body
        rest = {name: value for name, value in body.items() if name not in extra}
        return {**rest, EXTRA_BODY: {**extra, **(given or {})}}


def header_value(paths: Sequence[str]) -> str:
    """The value of `x-headrace-ignored`: percent-encoded paths, separated by commas."""
    return ", ".join(quote(path.encode("utf-8", "replace"), safe="[]") for path in paths)


def fitting(paths: Sequence[str]) -> tuple[str, ...]:
    """As many of these paths as fit into the header."""
    found = _Found(refuse_unknown=False)
    for path in paths:
        found.add(path)
    return tuple(found.paths)


class _Found:
    """The paths of ignored members, as many as fit into the header."""

    __slots__ = ("_room", "paths", "refuse_unknown")

    def __init__(self, refuse_unknown: bool) -> None:
        self.refuse_unknown = refuse_unknown
        self.paths: dict[str, None] = {}
        self._room = MAX_HEADER_BYTES

    def add(self, path: str) -> None:
        if path in self.paths or len(self.paths) == MAX_NAMES:
            return
        size = len(header_value((path,))) + 2
        if size <= self._room:
            self._room -= size
            self.paths[path] = None


class _RejectedError(Exception):
    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path)
        self.path = path
        self.reason = reason

    def below(self, step: str) -> _RejectedError:
        """The same error, seen from the parent."""
        return _RejectedError(f"{step}{self.path}" if self.path.startswith("[") else f"{step}.{self.path}", self.reason)


class _Node(ABC):
    """Part of a shape. `kinds`: the types of JSON values that `read` may change."""

    kinds: frozenset[type[Any]]

    @abstractmethod
    def read(self, value: Any, found: _Found) -> Any:
        """Return the normalized value. It is copied if it differs."""


class Shape:
    """The members that a schema knows, at every depth."""

    def __init__(self, schema: type[BaseModel]) -> None:
        rules: MemberRules = getattr(schema, RULES, MemberRules())
        root = _object(schema, "", rules)
        self.root: _Node = root
        self.members = root.names
        self.is_merge_patch: bool = getattr(schema, MERGE_PATCH, False)
        self.takes_extra_body = EXTRA_BODY in self.members
        self.known = frozenset((*rules.ignored, *rules.refused, *rules.effective))


class _Integer(_Node):
    """A number that must be an integer."""

    kinds = frozenset[type[Any]]((float,))

    def read(self, value: Any, _: _Found) -> Any:
        return int(value) if type(value) is float and value.is_integer() else value


class _List(_Node):
    def __init__(self, item: _Node) -> None:
        self.item = item
        self.kinds = frozenset[type[Any]]((list,))

    def read(self, value: Any, found: _Found) -> Any:
        # The types of all items are collected first because most long lists are token ids, which need no change.
        if type(value) is not list or self.item.kinds.isdisjoint(map(type, value)):
            return value
        result, changed = [], False
        for position, item in enumerate(value):
            try:
                read = self.item.read(item, found)
            except _RejectedError as rejected:
                raise rejected.below(f"[{position}]") from None
            changed = changed or read is not item
            result.append(read)
        return result if changed else value


class _Droppable(_List):
    """A list of which items with an unknown member `type` are dropped, if others remain."""

    def __init__(self, path: str, item: _Object) -> None:
        super().__init__(item)
        self._path = path
        self._known = item

    def read(self, value: Any, found: _Found) -> Any:
        if type(value) is list and not found.refuse_unknown:
            kept = [item for item in value if self._unknown_type(item) is None]
            if kept and len(kept) < len(value):
                for item in value:
                    if (kind := self._unknown_type(item)) is not None:
                        found.add(f"{self._path}[{kind[:MAX_NAME]}]")
                value = kept
        return super().read(value, found)

    def _unknown_type(self, item: Any) -> str | None:
        kind = item.get("type") if type(item) is dict else None
        return kind if isinstance(kind, str) and not self._known.matches(kind) else None


class _Effective(_Node):
    """A member, or the items of a list, of which only some values have an effect."""

    def __init__(self, path: str, values: Collection[Any]) -> None:
        self._path = path
        self._values = values
        self.kinds = frozenset[type[Any]]((str, bool, list))

    def read(self, value: Any, found: _Found) -> Any:
        if isinstance(value, list):
            kept = [item for item in value if not isinstance(item, str) or item in self._values]
            if len(kept) == len(value):
                return value
            result: Any = kept
        elif isinstance(value, str | bool) and value not in self._values:
            result = None
        else:
            return value
        if found.refuse_unknown:
            raise _RejectedError("", f"must be one of {', '.join(map(str, self._values))}")
        found.add(self._path)
        return result


@dataclass(frozen=True, slots=True)
class _Member:
    """A field. `keeps_empty`: `{}` is a value, such as a JSON Schema that accepts everything, or `EmptyIsValue`."""

    optional: bool
    keeps_empty: bool
    node: _Node | None
    significant: Callable[[Any], bool] | None = None


class _Object(_Node):
    def __init__(
        self, path: str, members: Mapping[str, _Member], rules: MemberRules, tags: frozenset[str], tag_optional: bool
    ) -> None:
        """`tags`: the values of the member `type`. With another value, the schema rejects the object."""
        self._path = path
        self._members = members
        self.names = members.keys()
        self._rules = rules
        self.tags = tags
        self.tag_optional = tag_optional
        self.kinds = frozenset[type[Any]]((dict,))

    def read(self, value: Any, found: _Found) -> Any:
        if type(value) is not dict or (self.tags and not self.matches(value.get("type"))):
            return value
        result: dict[str, Any] = {}
        changed = False
        for name, item in value.items():
            member = self._members.get(name)
            if member is None or (member.significant is not None and not member.significant(item)):
                changed = True
                if not _is_empty(item):
                    self._unknown(name, item, found)
                continue
            read = item
            if member.node is not None:
                try:
                    read = member.node.read(item, found)
                except _RejectedError as rejected:
                    raise (rejected.below(name) if rejected.path else _RejectedError(name, rejected.reason)) from None
                changed = changed or read is not item
            if read is None or (
                member.optional and _is_empty(read) and not (member.keeps_empty and type(read) is dict)
            ):
                changed = True
                continue
            result[name] = read
        return result if changed else value

    def matches(self, tag: Any) -> bool:
        """Whether the member `type` may have this value."""
        return tag in self.tags if isinstance(tag, str) else self.tag_optional and _is_empty(tag)

    def _unknown(self, name: str, value: Any, found: _Found) -> None:
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                message = "A parameter name is not valid Unicode: it has an unpaired surrogate."
                raise InvalidRequest(message) from None
        path = f"{self._path}.{name[:MAX_NAME]}" if self._path else name[:MAX_NAME]
        refusal = self._rules.refused.get(path)
        if refusal is not None and value not in refusal.harmless:
            raise _RejectedError(name, refusal.reason)
        if found.refuse_unknown:
            raise _RejectedError(name[:MAX_NAME] or "''", "this parameter is unknown or not supported")
        found.add(path)


class _Union(_Node):
    """Alternatives of which the JSON type, and for objects the member `type`, selects one."""

    def __init__(self, nodes: Sequence[_Node]) -> None:
        self._objects = [node for node in nodes if isinstance(node, _Object)]
        self._others = [node for node in nodes if not isinstance(node, _Object)]
        self.kinds = frozenset[type[Any]]().union(*(node.kinds for node in nodes))

    def read(self, value: Any, found: _Found) -> Any:
        if type(value) is dict:
            tag = value.get("type")
            node = next((node for node in self._objects if not node.tags or node.matches(tag)), None)
            return node.read(value, found) if node is not None else value
        for other in self._others:
            if type(value) in other.kinds:
                value = other.read(value, found)
        return value


def _is_empty(value: Any) -> bool:
    return value is None or (not value and type(value) in (list, dict))


def _object(schema: type[BaseModel], path: str, rules: MemberRules) -> _Object:
    members: dict[str, _Member] = {}
    tags: frozenset[str] = frozenset()
    tag_optional = False
    for name, info in schema.model_fields.items():
        annotation = info.annotation
        for form in info.metadata:
            if isinstance(form, JsonForm):
                annotation = form.type
        for alias in _aliases(name, info):
            at = f"{path}.{alias}" if path else alias
            node: _Node | None = _node(annotation, at, rules)
            if at in rules.effective:
                node = _Effective(at, rules.effective[at])
            if at in rules.droppable and isinstance(node, _List) and isinstance(node.item, _Object):
                node = _Droppable(at, node.item)
            keeps_empty = _is_client_data(annotation) or any(isinstance(one, EmptyIsValue) for one in info.metadata)
            members[alias] = _Member(not info.is_required(), keeps_empty, node, rules.significant.get(at))
        if name == "type":
            tags = frozenset(filter(lambda value: isinstance(value, str), _literals(annotation)))
            tag_optional = not info.is_required()
    return _Object(path, members, rules, tags, tag_optional)


def _aliases(name: str, info: FieldInfo) -> Sequence[str]:
    match info.validation_alias:
        case AliasChoices(choices=choices):
            return [choice for choice in choices if isinstance(choice, str)]
        case str(alias):
            return [alias]
    return [info.alias or name]


def _node(annotation: Any, path: str, rules: MemberRules) -> _Node | None:
    """Compile a type; None if its values are never changed."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _object(annotation, path, rules)
    if annotation is int:
        return _Integer()
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _node(arguments[0], path, rules)
    if origin is list:
        item = _node(arguments[0], f"{path}[]", rules)
        return _List(item) if item is not None else None
    if origin in (Union, types.UnionType):
        alternatives = list(_alternatives(annotation))
        nodes = [node for item in alternatives if (node := _node(item, path, rules)) is not None]
        if float in alternatives:
            nodes = [node for node in nodes if not isinstance(node, _Integer)]
        lists = [node for node in nodes if isinstance(node, _List)]
        if len(lists) > 1:  # so that a list is read once
            others = [node for node in nodes if not isinstance(node, _List)]
            nodes = [*others, _List(_Union([node.item for node in lists]))]
        return _Union(nodes) if len(nodes) > 1 else nodes[0] if nodes else None
    return None


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union; the type itself if it is none."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for item in get_args(annotation):
            yield from _alternatives(item)
    else:
        yield annotation


def _literals(annotation: Any) -> Iterator[Any]:
    for item in _alternatives(annotation):
        if get_origin(item) is Literal:
            yield from get_args(item)


def _is_client_data(annotation: Any) -> bool:
    """Whether a field takes any JSON object, which belongs to the client."""
    return any(get_origin(item) is dict and get_args(item)[1] is Any for item in _alternatives(annotation))
