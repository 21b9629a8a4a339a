"""Reads YAML files of the configuration, and names the places of their errors by line and field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
import yaml.reader

Location = tuple[int | str, ...]


class YamlFileError(ValueError):
    """A file cannot be read, or is not YAML, or has a key twice. The message names the file and the line."""


class YamlFile(NamedTuple):
    """The content of a file, and its nodes, which know their lines. `root`: the field that an empty location names."""

    path: Path
    tree: yaml.Node | None
    data: Any
    root: str

    def error(self, location: Location, message: str) -> str:
        """A message about a place in the file."""
        return f"{self.path}, line {line_of(self.tree, location)}: {field_name(location, self.root)}: {message}"


def read_yaml(path: Path, *, variable: str, root: str) -> YamlFile:
    """Read a file that an environment variable names.

    Raises:
        YamlFileError: it cannot be read, is not YAML, or has a key twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise YamlFileError(f"{path}: cannot be read ({error.strerror}); set {variable} to a file") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise YamlFileError(f"{path}, line {line}: not valid YAML: not UTF-8") from error
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise YamlFileError(f"{path}, line {line}: not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlFileError(f"{path}, line {line}: not valid YAML: {error.reason}") from error
    file = YamlFile(path, tree, data, root)
    if problems := list(_repeated_keys(file)):
        raise YamlFileError("\n".join(problems))
    return file


def _repeated_keys(file: YamlFile) -> Iterator[str]:
    """Mappings that have a key twice: YAML would keep the last value."""
    nodes: list[tuple[yaml.Node, Location]] = [(file.tree, ())] if file.tree is not None else []
    seen = set()
    while nodes:
        node, location = nodes.pop(0)
        if id(node) in seen:  # of an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += [(item, (*location, index)) for index, item in enumerate(node.value)]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line, name, below = key.start_mark.line + 1, (key.tag, key.value), (*location, key.value)
                if name in lines:
                    field = field_name(below, file.root)
                    yield f"{file.path}, line {line}: {field}: is already set in line {lines[name]}"
                lines.setdefault(name, line)
                nodes.append((value, below))


def field_name(location: Location, root: str) -> str:
    """The name of a place: `models[0].options.url`; that of the whole file is `root`."""
    name = ""
    for step in location:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else str(step)
    return name or root


def line_of(node: yaml.Node | None, location: Location) -> int:
    """The line (counted from 1) of a location; of its closest existing parent if it is missing."""
    line = node.start_mark.line + 1 if node else 1
    for step in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == step:
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                break
        else:
            break
    return line
