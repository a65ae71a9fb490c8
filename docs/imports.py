"""Draws which room imports which, as the picture of docs/code.md: `python docs/imports.py` writes it anew.

A room is a folder two levels deep, with all that is in it, or a module that lies at a package's door.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "models", "tune")
PAGE = ROOT / "docs/code.md"
BEGIN, END = "```mermaid\n", "```\n"


def room_of(path: Path) -> str:
    """The room that a module of the project lies in, such as `tune/trials` or `models/model.py`."""
    return "/".join(path.relative_to(ROOT).parts[:2])


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports; what is imported for annotations alone does not count."""
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "__init__.py":
                continue
            room = room_of(path)
            graph.setdefault(room, set())
            for module in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
                if file.is_file() and room_of(file) != room:
                    graph[room].add(room_of(file))
    return graph


def _imported(node: ast.AST) -> set[str]:
    """Dotted names of the modules that a tree imports, also inside functions."""
    names: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module:
            names |= {child.module, *(f"{child.module}.{alias.name}" for alias in child.names)}
        elif isinstance(child, ast.Import):
            names |= {alias.name for alias in child.names}
        names |= _imported(child)
    return names


def reachable(graph: dict[str, set[str]], room: str) -> set[str]:
    """All rooms that a room imports, directly or not."""
    waiting, seen = list(graph[room]), set[str]()
    while waiting:
        if (other := waiting.pop()) not in seen:
            seen.add(other)
            waiting += graph[other]
    return seen


def picture(graph: dict[str, set[str]]) -> str:
    """The rooms that are folders as a Mermaid graph, without the arrows that follow from others."""
    folders = {room for room in graph if not room.endswith(".py")}
    below = {room: reachable(graph, room) & folders for room in folders}
    lines = ["graph TD"]
    for room in sorted(folders):
        direct = below[room] - {far for near in below[room] for far in below[near]}
        lines += [f"    {room} --> {other}" for other in sorted(direct)] or [f"    {room}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the picture into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    PAGE.write_text(before + BEGIN + picture(imports()) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
