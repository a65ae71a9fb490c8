"""Where in a YAML document its keys are, for messages that name the line."""

from __future__ import annotations

from typing import Any

import yaml


def parsed(text: str) -> tuple[Any, yaml.Node | None]:
    """The content of a YAML document, and its tree, which knows the lines.

    Raises:
        YAMLError: it is none.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        return (None if root is None else loader.construct_document(root)), root
    finally:
        loader.dispose()


def lines_of(node: yaml.Node | None, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Line of every key of a YAML document, by its path."""
    lines = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            lines[path] = key.start_mark.line + 1
            lines.update(lines_of(value, path))
    return lines


def repeated_key(node: yaml.Node | None, inside: tuple[yaml.Node, ...] = ()) -> yaml.Node | None:
    """The first key of a YAML document that its mapping has already; YAML itself lets the last one win.

    Raises:
        YAMLError: a mapping that is inside itself, by an alias.
    """
    if not isinstance(node, yaml.MappingNode):
        return None
    if node in inside:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a mapping that holds itself")
    names = set()
    for key, value in node.value:
        if (name := str(key.value)) in names:
            return key
        names.add(name)
        if duplicate := repeated_key(value, (*inside, node)):
            return duplicate
    return None
