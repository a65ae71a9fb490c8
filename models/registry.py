"""The models a sweep can train, by name; or one in a file of the user's own.

A file of one's own defines `MODEL = Model(...)`, see `models/model.py`:

    python tune/run_sweep.py --space my_space.yaml     # with the line `model: path/to/my_model.py`
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from data.errors import UserError
from data.machine.import_path import users_last
from data.stores.places import expanded

if TYPE_CHECKING:
    from models.family import Family, FamilyFacts
    from models.model import Model

# By name the module and its constant, which is imported when it is asked for: torch and the like take seconds.
MODELS = {
    "chgnet": ("models.crystals.chgnet.model", "CHGNET"),
    "gaussian_process": ("models.crystals.gaussian_process.model", "GAUSSIAN_PROCESS"),
    "composition_network": ("models.crystals.composition.model", "COMPOSITION_NETWORK"),
    "ridge": ("models.crystals.linear", "RIDGE"),
    "dummy": ("models.crystals.linear", "DUMMY"),
}
DEFAULT_MODEL = "chgnet"  # of a space or a queue that names none

# By name the module, and the packages whose versions its numbers depend on beside those of every sweep.
FAMILIES = {"crystals": "models.crystals.family"}
PACKAGES = {"crystals": ("chgnet", "pymatgen", "matbench")}
# The same of what is known of examples beside their predictions; a family need not have one.
FAMILY_FACTS = {"crystals": "models.crystals.facts"}


class ModelError(UserError, ValueError):
    """No such model, or a file that does not define one."""


def open_model(name: str) -> Model:
    """A model by its name, or the `MODEL` of a Python file.

    Raises:
        ModelError: no such model, or a file without a `MODEL`.
    """
    if name in MODELS:
        file, constant = MODELS[name]
        return getattr(importlib.import_module(file), constant)
    if not name.endswith(".py"):
        raise ModelError(f"no model {name!r}: choose one of {', '.join(MODELS)}, or give a Python file with a MODEL")
    from models.model import Model

    path = expanded(name).resolve()
    try:
        source = path.read_bytes()
    except OSError as problem:
        raise ModelError(f"model {name!r}: {problem}") from None
    # One module for each content: a file that was changed is read again, one that was not stays what it is.
    module_name = f"matsweep_model_{path.stem}_{hashlib.sha256(source).hexdigest()[:12]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        users_last()
        assert spec is not None
        assert spec.loader is not None
        sys.modules[module_name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as problem:  # whatever their code raises
            del sys.modules[module_name]
            raise ModelError(f"{path} cannot be imported: {type(problem).__name__}: {problem}") from problem
    model = getattr(sys.modules[module_name], "MODEL", None)
    if not isinstance(model, Model):
        raise ModelError(f"{path} defines no MODEL = Model(...); see models/model.py")
    return replace(model, name=str(path))  # where its code is, for the model file and the workers


def family_of(model: str) -> str:
    """The family that a model is of; of one whose folder says it, without the seconds that its import takes.

    Raises:
        ModelError: as `open_model`.
    """
    folder = MODELS.get(model, ("", ""))[0]
    families = (name for name, module in FAMILIES.items() if folder.startswith(module.rpartition(".")[0] + "."))
    return next(families, None) or open_model(model).family


def open_family(name: str) -> Family:
    """A family by its name.

    Raises:
        ModelError: no such family.
    """
    if name not in FAMILIES:
        raise ModelError(f"no family {name!r}: choose one of {', '.join(FAMILIES)}")
    return importlib.import_module(FAMILIES[name])


def open_facts(name: str) -> FamilyFacts | None:
    """The facts that a family tells of its examples, or None where it tells none; imports neither torch nor Ray."""
    return importlib.import_module(FAMILY_FACTS[name]) if name in FAMILY_FACTS else None


def planned_epochs(fields: dict[str, Any]) -> int:
    """Epochs that a trial was to train unless it is stopped: a space need not set them.

    Args:
        fields: `model` and what was set of its config.

    Returns:
        `epochs`, else the default of the model's config; 1 where there are none, as one fit is one epoch.
    """
    return fields["epochs"] if "epochs" in fields else _default_epochs(fields.get("model"))


@cache  # a file of the user's own is read once, and may be edited while a sweep runs
def _default_epochs(model: str | None) -> int:
    fields = open_model(model).config.model_fields if model else {}
    return fields["epochs"].default if "epochs" in fields else 1
