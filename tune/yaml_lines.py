"""Where in a YAML document its keys are, for messages that name the line."""

from __future__ import annotations

import yaml


def lines_of(node: yaml.Node | None, where: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Line of every key of a YAML document, by its path."""
    found = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*where, str(key.value))
            found[path] = key.start_mark.line + 1
            found.update(lines_of(value, path))
    return found


def repeated_key(node: yaml.Node | None) -> yaml.Node | None:
    """The first key of a YAML document that its mapping has already; YAML itself lets the last one win."""
    if not isinstance(node, yaml.MappingNode):
        return None
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            return key
        seen.add(key.value)
        if repeated := repeated_key(value):
            return repeated
    return None
