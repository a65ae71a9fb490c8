"""Reads damaged files in a process of its own, and says how each reading ended; no fixture, no test.

    python tests/made/fuzzing.py KIND,KIND FOLDER FIRST LAST

Each file begins with a real one. What a damage may do to it depends on where it fell: a digit of a coordinate makes
another crystal that no reader can tell from the first, but whatever leaves the sites and the cell alone leaves the
crystal as it was, and a file whose formula and Z are whole has the atoms that they say. One line of JSON a file.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from mutations import Damage, damaged
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar

from data.crystals.crystal import BadCrystalError, Crystal, ReadCrystal, crystal_from_structure
from data.crystals.quality import check_crystal
from data.crystals.shards import (
    CacheSpec,
    DamagedShardError,
    StaleCacheError,
    encode_shard,
    read_cache,
    write_manifest,
    write_shard,
)
from data.stores.download import DownloadError
from data.stores.storage import StorageError, open_folder
from data.task import TaskError
from data.tasks import open_task

SECONDS, BYTES = 10, 2 * 10**9  # that one file may take
OURS: tuple[type[Exception], ...] = (
    TaskError, BadCrystalError, DownloadError, StorageError, DamagedShardError, StaleCacheError,
)  # fmt: skip
GOOD = ("equal", "noted", "as written", "quarantined", "sentence")


class TooSlowError(BaseException):
    """A file took longer than it may."""


class WrongError(AssertionError):
    """A reading that the file does not warrant; the message says which."""


class Kind:
    """Files of one kind: some that are whole, how one is read, and whether a reading is right."""

    text = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.originals = self.write_originals()
        self.whole = [self.read(*original) for original in self.originals]

    def write_originals(self) -> list[tuple[str, bytes]]:
        raise NotImplementedError

    def read(self, name: str, content: bytes) -> Any:
        raise NotImplementedError

    def judge(self, before: Any, after: Any, original: bytes, damage: Damage) -> str:
        raise NotImplementedError


@cache
def demo() -> list[Structure]:
    """Crystals of few atoms of the demo."""
    _, rows = open_task("demo", download_dir=Path("none"))
    crystals = [crystal for crystal in rows.chunk(0, len(rows)).crystals() if len(crystal.numbers) <= 8]
    return [Structure(c.lattice, c.numbers, c.frac_coords) for c in crystals[::60][:12]]


def same(crystal: Crystal, other: Crystal | None) -> bool:
    """Whether two crystals are the same but for rounding and the order of atoms."""
    if other is None or sorted(crystal.numbers) != sorted(other.numbers):
        return False
    if not np.isclose(np.linalg.det(crystal.lattice), np.linalg.det(other.lattice), rtol=1e-5):
        return False
    if np.array_equal(crystal.numbers, other.numbers) and np.allclose(crystal.lattice, other.lattice, atol=1e-5):
        apart = crystal.frac_coords - other.frac_coords
        if np.abs(apart - np.round(apart)).max() < 1e-4:
            return True
    structures = [Structure(c.lattice, c.numbers, c.frac_coords) for c in (crystal, other)]
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.05, primitive_cell=False, scale=False)
    return bool(matcher.fit(*structures))


class Crystals(Kind):
    """A folder with one structure file and its target."""

    def read(self, name: str, content: bytes) -> ReadCrystal:
        for old in self.folder.iterdir():
            old.unlink()
        (self.folder / "targets.csv").write_text(f"file,y\n{name},0.5\n")
        (self.folder / name).write_bytes(content)
        return read_one(self.folder)

    def judge(self, before: ReadCrystal, after: ReadCrystal, original: bytes, damage: Damage) -> str:
        if same(before.crystal, after.crystal):
            return "equal"
        if set(after.notes) - set(before.notes):
            return "noted"
        self.check_other(before, after, original, damage)
        return "as written"

    def check_other(self, before: ReadCrystal, after: ReadCrystal, original: bytes, damage: Damage) -> None:
        """Raise WrongError where the damage does not explain another crystal."""
        raise NotImplementedError


def read_one(path: Path) -> ReadCrystal:
    """The one crystal of a task, as it goes into the graphs."""
    _, rows = open_task(str(path), download_dir=path)
    (row,) = rows.chunk(0, 1).read()
    if isinstance(row, BadCrystalError):
        raise row
    check_crystal(row.crystal)
    return row


class Cif(Crystals):
    def write_originals(self) -> list[tuple[str, bytes]]:
        import ase

        minerals = Path(ase.__file__).parent / "test" / "testdata" / "minerals"
        files = [(path.name, path.read_bytes()) for path in sorted(minerals.glob("*.cif"))]
        for k, structure in enumerate(demo()):
            files.append((f"demo_{k}.cif", str(CifWriter(structure, symprec=0.01 if k % 2 else None)).encode()))
        return files

    def check_other(self, before: ReadCrystal, after: ReadCrystal, original: bytes, damage: Damage) -> None:
        lines = original.decode("utf-8", "replace").split("\n")
        sites, stated = _geometry_lines(lines), {
            k + more for k, line in enumerate(lines) for more in (0, 1)
            if "_chemical_formula_sum" in line or "_cell_formula_units_Z" in line
        }  # fmt: skip
        if not damage.lines & sites:
            raise WrongError(f"another crystal, though neither sites nor cell were touched, but lines {damage.lines}")
        has_both = all(name in original.decode("utf-8", "replace") for name in ("_formula_sum", "_formula_units_Z"))
        if has_both and not damage.lines & stated and sorted(before.crystal.numbers) != sorted(after.crystal.numbers):
            raise WrongError("other atoms than formula and Z say")


def _geometry_lines(lines: list[str]) -> set[int]:
    """Lines of the cell's lengths and angles and of the loop of sites."""
    geometry, in_sites = set(), False
    for k, line in enumerate(lines):
        word = line.strip()
        if word.startswith("_atom_site_") and not word.startswith("_atom_site_aniso"):
            in_sites = True
        elif word.startswith(("loop_", "#", "data_")) or (word.startswith("_") and in_sites):
            in_sites = False
        if in_sites or word.startswith(("_cell_length", "_cell_angle")):
            geometry.add(k)
    return geometry


class PoscarFile(Crystals):
    """Judged by what pymatgen or ASE read in the damaged file, where it is not read as the original."""

    def write_originals(self) -> list[tuple[str, bytes]]:
        import ase

        example = Path(ase.__file__).parent / "test" / "testdata" / "vasp" / "POSCAR_example_1"
        lines = example.read_text().splitlines(keepends=True)
        names = [] if lines[5].split()[0].isalpha() else ["Si\n"]  # a file of VASP 4 has none
        files = [("POSCAR_example", "".join([*lines[:5], *names, *lines[5:]]).encode())]
        for k, structure in enumerate(demo()):
            poscar = Poscar(structure, sort_structure=True)
            files.append((f"demo_{k}.vasp", poscar.get_str(direct=bool(k % 3)).encode()))
        return files

    def check_other(self, before: ReadCrystal, after: ReadCrystal, original: bytes, damage: Damage) -> None:
        content = re.sub(rb"(\d)[dD]([-+]?\d)", rb"\1e\2", damage.content)  # they know no exponents of Fortran
        readings = [crystal for reader in (_by_pymatgen, _by_ase) if (crystal := reader(content)) is not None]
        if not any(same(after.crystal, crystal) for crystal in readings):
            raise WrongError(f"another crystal than pymatgen and ASE read, {len(readings)} of which read it")


def _by_pymatgen(content: bytes) -> Crystal | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return crystal_from_structure(Poscar.from_str(content.decode()).structure)
    except Exception:  # noqa: BLE001 - theirs are of every kind
        return None


def _by_ase(content: bytes) -> Crystal | None:
    import ase.io

    try:
        with warnings.catch_warnings(action="ignore"):
            atoms = ase.io.read(io.StringIO(content.decode()), format="vasp")
        return Crystal(atoms.numbers, atoms.get_scaled_positions(wrap=False), np.array(atoms.cell))
    except Exception:  # noqa: BLE001 - theirs are of every kind
        return None


class Table(Kind):
    """A table of several rows; read as ids, targets and inputs. Lines that were not touched keep their row."""

    def read(self, name: str, content: bytes) -> list[Row]:
        path = self.folder / name
        path.write_bytes(content)
        _, rows = open_task(str(path), target="e_form", download_dir=self.folder)
        chunk = rows.chunk(0, len(rows))
        if rows.format == "composition":
            inputs: list[Any] = [one.decode() for one in chunk.payloads]
        else:
            inputs = [_checked(one) for one in chunk.read()]
        return [Row(*row) for row in zip(rows.ids, rows.targets.tolist(), inputs, strict=True)]

    def judge(self, before: list[Row], after: list[Row], original: bytes, damage: Damage) -> str:
        if _same_rows(before, after):
            return "equal"
        if self.text and len(damage.how) == 1:
            lines = original.split(b"\n")
            touched = b"\n".join(lines[k] for k in damage.lines if k < len(lines))
            for row in before:
                if row.id.encode() not in touched and not any(_same_rows([row], [other]) for other in after):
                    raise WrongError(f"row {row.id} is gone or another, though its line was not touched")
        return "as written"


def _checked(row: ReadCrystal | BadCrystalError) -> ReadCrystal | BadCrystalError:
    """The row, or why it goes into no graph."""
    try:
        if isinstance(row, ReadCrystal):
            check_crystal(row.crystal)
    except BadCrystalError as error:
        return error
    return row


class Row(NamedTuple):
    """A row of a task as it is read."""

    id: str
    target: float
    input: str | ReadCrystal | BadCrystalError


def _same_rows(some: list[Row], others: list[Row]) -> bool:
    return len(some) == len(others) and all(
        row.id == other.id
        and np.isclose(row.target, other.target, rtol=1e-12, atol=0, equal_nan=True)
        and _same_input(row.input, other.input)
        for row, other in zip(some, others, strict=True)
    )


def _same_input(content: object, other: object) -> bool:
    if isinstance(content, ReadCrystal) and isinstance(other, ReadCrystal):
        return same(content.crystal, other.crystal)
    return type(content) is type(other) and str(content) == str(other)


class Csv(Table):
    def write_originals(self) -> list[tuple[str, bytes]]:
        table = pd.DataFrame({"id": [f"r{k:03}" for k in range(12)], "formula": [s.reduced_formula for s in demo()]})
        table["e_form"] = np.linspace(-2, 1, len(table))
        quoted = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)
        return [
            ("plain.csv", table.to_csv(index=False).encode()),
            ("quoted.csv", quoted.encode()),
            ("semicolons.csv", table.to_csv(index=False, sep=";", decimal=",").encode()),
            ("groups.csv", table.assign(group=[f"g{k % 3}" for k in range(12)]).to_csv(index=False).encode()),
        ]


class Json(Table):
    """Matbench's layout and records, by lines and as a list; judged by pymatgen where a row is not the original's."""

    def write_originals(self) -> list[tuple[str, bytes]]:
        structures = demo()[:4]
        dicts = [one.as_dict(verbosity=0) for one in structures]
        targets = [0.25 * k for k in range(4)]
        ids = [f"row-{k}" for k in range(4)]
        matbench = {"index": ids, "columns": ["structure", "e_form"], "data": list(zip(dicts, targets, strict=True))}
        records = [{"id": i, "e_form": e, "structure": s} for i, e, s in zip(ids, targets, dicts, strict=True)]
        text = "\n".join(json.dumps(one) for one in records)
        return [
            ("matbench.json", json.dumps(matbench).encode()),
            ("lines.jsonl", text.encode()),
            ("list.json", json.dumps(records, indent=1).encode()),
            ("matbench.json.gz", gzip.compress(json.dumps(matbench).encode(), mtime=0)),
        ]

    def judge(self, before: list[Row], after: list[Row], original: bytes, damage: Damage) -> str:
        if _same_rows(before, after):
            return "equal"
        content = gzip.decompress(damage.content) if damage.content[:2] == b"\x1f\x8b" else damage.content
        by_pymatgen = _structures_in_json(content)
        if by_pymatgen is not None and len(by_pymatgen) != len(after):
            raise WrongError(f"{len(after)} rows of {len(by_pymatgen)}")
        for k, row in enumerate(after):
            if isinstance(row.input, BadCrystalError) or any(_same_input(row.input, one.input) for one in before):
                continue
            if by_pymatgen is None and len(damage.how) > 1:
                continue  # one damage may have broken the file elsewhere
            if by_pymatgen is None:
                raise WrongError(f"row {row.id} is another crystal, and the file is no JSON")
            if not row.input.notes and not same(row.input.crystal, by_pymatgen[k]):
                raise WrongError(f"row {row.id} is another crystal than pymatgen reads")
        return "as written"


def _structures_in_json(content: bytes) -> list[Crystal] | None:
    """What pymatgen reads; None where the file is no JSON."""
    try:
        text = content.decode("utf-8-sig")
        try:
            table = json.loads(text)
        except ValueError:
            table = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return None
    if isinstance(table, dict):
        table = [row[table["columns"].index("structure")] for row in table["data"]]
    else:
        table = [row.get("structure") for row in table]
    return [_as_crystal(record) for record in table]


def _as_crystal(record: dict) -> Crystal | None:
    try:
        return crystal_from_structure(Structure.from_dict(record))
    except Exception:  # noqa: BLE001 - theirs are of every kind
        return None


class Parquet(Table):
    text = False

    def write_originals(self) -> list[tuple[str, bytes]]:
        structures = demo()[:6]
        table = pd.DataFrame({"id": [f"row-{k}" for k in range(6)], "e_form": np.arange(6) / 8})
        files = []
        for name, column, compression in (
            ("text.parquet", [json.dumps(one.as_dict(verbosity=0)) for one in structures], "snappy"),
            ("plain.parquet", [json.dumps(one.as_dict(verbosity=0)) for one in structures], None),
            ("formulas.parquet", None, "zstd"),
        ):
            inputs = {"formula": [s.reduced_formula for s in structures]} if column is None else {"structure": column}
            buffer = io.BytesIO()
            table.assign(**inputs).to_parquet(buffer, compression=compression)
            files.append((name, buffer.getvalue()))
        return files

    def judge(self, before: list[Row], after: list[Row], original: bytes, damage: Damage) -> str:
        verdict = super().judge(before, after, original, damage)
        if verdict == "equal":
            return verdict
        table = pd.read_parquet(io.BytesIO(damage.content))
        if len(table) != len(after):
            raise WrongError(f"{len(after)} rows of {len(table)}")
        if not np.array_equal(table["e_form"].to_numpy(), [row.target for row in after], equal_nan=True):
            raise WrongError("other targets than pandas reads")
        return verdict


class Space(Kind):
    def write_originals(self) -> list[tuple[str, bytes]]:
        spaces = Path(__file__).resolve().parents[2] / "search_spaces"
        files = [(one.name, one.read_bytes()) for one in sorted(spaces.glob("*.yaml"))]
        return [(name, content) for name, content in files if b"\nexperiments:" not in content]

    def read(self, name: str, content: bytes) -> Any:
        from tune.spaces.space import load_space

        (self.folder / name).write_bytes(content)
        return load_space(str(self.folder / name))

    def judge(self, before: Any, after: Any, original: bytes, damage: Damage) -> str:
        if before.model_dump() == after.model_dump():
            return "equal"
        lines = original.split(b"\n")
        in_comment = all(lines[k].lstrip().startswith(b"#") for k in damage.lines if k < len(lines))
        if len(damage.how) == 1 and damage.how != ["encoding"] and in_comment:
            raise WrongError("another space, though only a comment was touched")
        return "as written"


class Checkpoint(Kind):
    text = False

    def write_originals(self) -> list[tuple[str, bytes]]:
        from models.crystals.rows import CrystalRows
        from models.fitted import FittedModel
        from models.model import TrainingPart
        from models.registry import open_model

        random = np.random.default_rng(0)
        fractions = random.dirichlet(np.ones(94), size=40).astype(np.float32)
        rows = CrystalRows(fractions, np.full(40, 5))
        part = TrainingPart(random.normal(size=40), np.arange(30), np.arange(30, 40), "regression", "energy_per_atom")
        files = []
        for name, fields in (("ridge", {}), ("composition_network", {"epochs": 1, "width": 8})):
            model = open_model(name)
            run = model.start(model.config(**fields), rows, part, "cpu")
            for _ in run.epochs():
                pass
            FittedModel(model, run.fitted(), {"unit": "eV/atom", "task": "made"}).save(self.folder / f"{name}.pth")
            files.append((f"{name}.pth", (self.folder / f"{name}.pth").read_bytes()))
        return files

    def read(self, name: str, content: bytes) -> Any:
        from models.fitted import load_model

        (self.folder / name).write_bytes(content)
        model = load_model(self.folder / name)
        return model.about, model.predict(["Fe2O3", "NaCl", "CuInSe2"])

    def judge(self, before: Any, after: Any, original: bytes, damage: Damage) -> str:
        if before[0] != after[0]:
            raise WrongError(f"the model says other things of itself: {after[0]}")
        if not np.array_equal(before[1], after[1]):
            raise WrongError(f"other predictions: {after[1]}, {before[1]} before")
        return "equal"


class Predictions(Kind):
    def write_originals(self) -> list[tuple[str, bytes]]:
        from finished_runs import make_rows, predict, write_run

        rows = make_rows(2, 30)
        self.run = write_run(self.folder / "made", rows, predict(rows, 0.1))
        names = ["seed_0/preds_fold_0.csv", "seed_0/history_fold_1.csv", "results.json"]
        return [(name, (self.run / name).read_bytes()) for name in names]

    def read(self, name: str, content: bytes) -> Any:
        from tune.runs import load_sweep

        whole = (self.run / name).read_bytes()
        (self.run / name).write_bytes(content)
        try:
            run = load_sweep(str(self.run))
            return run.results, {k: (m.test, m.history) for k, m in run.members.items()}
        finally:
            (self.run / name).write_bytes(whole)

    def judge(self, before: Any, after: Any, original: bytes, damage: Damage) -> str:
        unequal = [k for k in before[1] if k not in after[1] or not all(
            one.equals(other) for one, other in zip(before[1][k], after[1][k], strict=True))]  # fmt: skip
        if before[0] == after[0] and not unequal:
            return "equal"
        for name in unequal:
            one, other = before[1][name][0], after[1].get(name, before[1][name])[0]
            if len(one) != len(other):
                raise WrongError(f"{len(other)} of {len(one)} predictions")
            off = np.abs(np.abs(other["y_true"] - other["y_pred"]) - other["abs_error"]).max()
            if off > 1e-6:
                raise WrongError(f"the error of a row is {off:.3g} off that of its prediction")
        return "as written"


class Cache(Kind):
    text = False

    def write_originals(self) -> list[tuple[str, bytes]]:
        from data.crystals.graphs import convert

        graphs = [convert(crystal_from_structure(structure), 6.0) for structure in demo()]
        self.spec = CacheSpec("0" * 64, 6.0, 3.0, n_rows=len(graphs), rows_per_shard=4)
        filesystem, path = open_folder(self.folder / "cache")
        for number, span in enumerate(self.spec.shard_rows):
            some = [graphs[k] for k in span]
            ids, formulas = [f"id {k}" for k in span], [f"formula {k}" for k in span]
            write_shard(filesystem, path, number, encode_shard(ids, formulas, some, [()] * len(some)))
        write_manifest(filesystem, path, self.spec)
        files = sorted((self.folder / "cache").iterdir())
        return [(one.name, one.read_bytes()) for one in files] + 3 * [("manifest.json", files[0].read_bytes())]

    def read(self, name: str, content: bytes) -> Any:
        file = self.folder / "cache" / name
        whole = file.read_bytes()
        file.write_bytes(content)
        try:
            return read_cache(*open_folder(self.folder / "cache"), self.spec)
        finally:
            file.write_bytes(whole)

    def judge(self, before: Any, after: Any, original: bytes, damage: Damage) -> str:
        if before.ids != after.ids or before.formulas != after.formulas or before.reasons != after.reasons:
            raise WrongError("other rows")
        for name, array in vars(before.graphs).items():
            if not np.array_equal(array, getattr(after.graphs, name)):
                raise WrongError(f"other {name}")
        return "equal"


KINDS: dict[str, type[Kind]] = {
    "cif": Cif, "poscar": PoscarFile, "csv": Csv, "json": Json, "parquet": Parquet, "space": Space,
    "checkpoint": Checkpoint, "predictions": Predictions, "cache": Cache,
}  # fmt: skip


def outcome(kind: Kind, name: str, case: int, errors: tuple[type[Exception], ...]) -> tuple[str, str, bytes]:
    """How the reading of one damaged file ended, what is to be said of it, and the file."""
    position = random.Random(f"{name}-{case}").randrange(len(kind.originals))
    file, original = kind.originals[position]
    before = kind.whole[position]
    damage = damaged(original, f"{name}-{case}", text=kind.text)
    about = f"{file}, {' + '.join(damage.how)}"
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        after = kind.read(file, damage.content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        return kind.judge(before, after, original, damage), about, damage.content
    except errors as error:
        message = str(error)
        if not message.strip() or "Traceback" in message or re.search(r'File "[^"]+", line', message):
            return "no sentence", f"{about}: {message}", damage.content
        ended = "quarantined" if isinstance(error, BadCrystalError) else "sentence"
        return ended, f"{about}: {message}", damage.content
    except TooSlowError:
        return "too slow", about, damage.content
    except MemoryError:
        return "memory", about, damage.content
    except WrongError as error:
        return "wrong", f"{about}: {error}", damage.content
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return "foreign", f"{about}: {type(error).__name__}: {error}", damage.content
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_slow(*_: object) -> None:
    raise TooSlowError


def _own_errors() -> tuple[type[Exception], ...]:
    from models.fitted import ModelFileError
    from tune.errors import RunError
    from tune.spaces.space import SpaceError

    return (*OURS, ModelFileError, RunError, SpaceError)


def main(name: str, folder: Path, first: int, last: int, say: Callable[[str], object]) -> None:
    """Read damaged files; a process that dies leaves the number of the file that it was at."""
    kind = KINDS[name](folder / f"{name}_files")
    errors = _own_errors()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    signal.signal(signal.SIGPROF, _too_slow)
    for case in range(first, last):
        say(json.dumps({"kind": name, "begun": case}))
        ended, about, content = outcome(kind, name, case, errors)
        if ended not in GOOD:
            (folder / f"{name}-{case}-{ended.replace(' ', '_')}").write_bytes(content)
        say(json.dumps({"kind": name, "case": case, "outcome": ended, "about": about[:2000]}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # the reader's own are its messages; theirs are not
    for name in sys.argv[1].split(","):
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
        main(name, Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), lambda line: print(line, flush=True))
