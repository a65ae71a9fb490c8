"""Files of the modules that a module imports, found by reading their text.

What is kept under a hash of the code - a sweep's trials, machine code - asks which files it depends on. A list written
by hand would lack the module that was moved or split yesterday.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from data.machine.import_path import ROOT

PACKAGES = ("data", "models", "tune")
# At the top of a module or inside a function. To parse all files takes 50 times as long: more than half a second.
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|.*)|import[ \t]+(.*))", re.MULTILINE)


def module_files(modules: Iterable[str], leave_out: Collection[str] = (), root: Path = Path(ROOT)) -> list[Path]:
    """The files of modules, and of all in the project that these import, directly or not; sorted by path.

    Args:
        modules: dotted names, such as `tune.trials.trial`.
        leave_out: dotted names of modules that count for nothing, nor what they alone import.
        root: the folder that the packages are in.

    Raises:
        ModuleNotFoundError: one of `modules` or of `leave_out` is not there; it may have been moved.
    """
    for name in (*modules, *leave_out):
        if _file(name, root) is None:
            raise ModuleNotFoundError(f"no module {name} in {root}", name=name)
    queue, names_read = list(modules), set(leave_out)
    files = set()
    while queue:
        name = queue.pop()
        if name in names_read:
            continue
        names_read.add(name)
        if "." in name:
            queue.append(name.rpartition(".")[0])  # Python runs a package's own file first
        if file := _file(name, root):
            files.add(file)
            queue += imported_modules(file.read_text(encoding="utf-8"))
    return sorted(files)


def importers(module: str, root: Path = Path(ROOT)) -> list[str]:
    """Dotted names of all modules of the project whose text imports a module."""
    names = []
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            if module in imported_modules(file.read_text(encoding="utf-8")):
                parts = file.relative_to(root).with_suffix("").parts
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def imported_modules(source: str) -> set[str]:
    """Dotted names that a module's text imports from the project; for `from a import b` both `a` and `a.b`."""
    names = set()
    for module, members, modules in _IMPORT.findall(source):
        if module:
            names |= {module, *(f"{module}.{member}" for member in _names(members))}
        else:
            names |= _names(modules)
    return {name for name in names if name.split(".")[0] in PACKAGES}


def _names(text: str) -> set[str]:
    """The names between commas, without brackets, comments and what they are called here."""
    parts = re.sub(r"#.*", "", text).strip("()\n ").split(",")
    return {part.split()[0] for part in parts if part.strip()}


def _file(module: str, root: Path) -> Path | None:
    """The file of a module or package; None where there is none, as for a function or a folder without its own file."""
    path = root.joinpath(*module.split("."))
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)
