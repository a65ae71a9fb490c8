"""Parquet shards of graphs and their manifest: written once, verified at every open.

A cache is a folder named after its key. A shard holds a run of rows, each a graph or the reason why the
row was rejected; its name carries its number and the start of its SHA-256, so that a file which appears
under that name is whole, and a second build can tell what is there without a log. `manifest.json` is
written last and makes the cache complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from data.crystals.graphs import CONVERTER_VERSION, Graph, Graphs, concatenate, starts
from data.errors import UserError
from data.machine.compiled import compiled
from data.stores.storage import StorageError, file_names, read_whole, write_whole

# 19,900 crystals of 30 atoms on two busy cores, with 512 / 2048 / 8192 rows a shard: built in 16 / 16 / 19 s,
# 0.6 / 2.0 / 8.1 MB a shard, read and verified in 0.37 / 0.31 / 0.41 s. A killed build loses at most one
# shard for each actor, and the largest official task has 65.
ROWS_PER_SHARD = 2048
MANIFEST = "manifest.json"
_SMALL = 256  # atoms that a byte can index
_SHARD_NAME = re.compile(r"shard-(\d{5})-([0-9a-f]{64})\.parquet")
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("formula", pa.string()),  # reduced; null for a rejected row, like all that follow
        ("reason", pa.string()),  # why the row was rejected; null for a good one
        ("notes", pa.list_(pa.string())),  # of the reader; empty or null where it had none
        ("cutoff_angstrom", pa.float32()),
        ("numbers", pa.binary()),  # uint8
        ("lattice", pa.binary()),  # float32, 3 x 3
        ("frac_coords", pa.binary()),  # float32, n_atoms x 3
        # Bonds as five planes of n_bonds bytes each: like bytes side by side compress several times better.
        ("bond_atoms", pa.binary()),  # i, then j; uint8 up to 256 atoms, else uint16
        ("bond_image", pa.binary()),  # int8: a, then b, then c
    ]
)


class DamagedShardError(UserError, RuntimeError):
    """Shards whose content is not what was written; `names` are their file names."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        """Name the damaged shards of a folder."""
        super().__init__(
            f"damaged shard(s) in {folder}: {', '.join(names)} (the content does not match its checksum). "
            "Run data/build_cache.py again: it rebuilds these and nothing else"
        )
        self.names = list(names)


class StaleCacheError(RuntimeError):
    """A cache that is incomplete or was made of other data or by another converter."""


@dataclass(frozen=True)
class CacheSpec:
    """All that a graph depends on; its key names the cache folder.

    Attributes:
        data_sha256: of the rows the graphs are made of.
        atom_graph_cutoff: Angstrom.
        bond_graph_cutoff: Angstrom; angles are derived from bonds at run time with it.
        n_rows: number of rows.
        converter_version: of the code that makes graphs.
        rows_per_shard: rows in each shard but the last.
    """

    data_sha256: str
    atom_graph_cutoff: float
    bond_graph_cutoff: float
    n_rows: int
    converter_version: int = CONVERTER_VERSION
    rows_per_shard: int = ROWS_PER_SHARD

    @property
    def key(self) -> str:
        """Hexadecimal key, 16 digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shard_rows(self) -> list[range]:
        """Rows of each shard."""
        step = self.rows_per_shard
        return [range(start, min(start + step, self.n_rows)) for start in range(0, self.n_rows, step)]


@dataclass(frozen=True)
class StoredGraphs:
    """A cache as read: row k of every field is row k of the task.

    Attributes:
        ids: as in the task.
        formulas: reduced formula, or None for a rejected row.
        reasons: why a row was rejected, or None.
        notes: what the reader of a row noted, see `data.crystals.crystal.ReadCrystal`.
        graphs: a rejected row has a graph of no atoms and no bonds.
        n_raised_cutoff: rows whose cutoff was raised because an atom had no neighbour.
    """

    ids: list[str]
    formulas: list[str | None]
    reasons: list[str | None]
    notes: list[tuple[str, ...]]
    graphs: Graphs
    n_raised_cutoff: int


def encode_shard(
    ids: Sequence[str],
    formulas: Sequence[str | None],
    graphs: Sequence[Graph | str],
    notes: Sequence[tuple[str, ...]],
) -> bytes:
    """One shard as Parquet bytes.

    Args:
        ids: of the rows.
        formulas: reduced formula of each row, None for a rejected one.
        graphs: a graph, or the reason why there is none.
        notes: of the reader; of a rejected row nobody asks for them.
    """
    rows: list[dict[str, object]] = []
    for row_id, formula, graph, of_row in zip(ids, formulas, graphs, notes, strict=True):
        if isinstance(graph, str):
            rows.append({"id": row_id, "reason": graph})
            continue
        index_type = _index_type(len(graph.numbers))
        rows.append(
            {
                "id": row_id,
                "formula": formula,
                "notes": of_row,
                "cutoff_angstrom": graph.cutoff_angstrom,
                "numbers": graph.numbers.tobytes(),
                "lattice": graph.lattice.tobytes(),
                "frac_coords": graph.frac_coords.tobytes(),
                "bond_atoms": graph.bond_atoms.T.astype(index_type).tobytes(),
                "bond_image": graph.bond_image.T.tobytes(),
            }
        )
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    pq.write_table(table, buffer, compression="zstd", compression_level=7, use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


def write_shard(filesystem: fs.FileSystem, folder: str, number: int, content: bytes) -> str:
    """Write an encoded shard under its content-derived name, and return that name."""
    name = f"shard-{number:05d}-{hashlib.sha256(content).hexdigest()}.parquet"
    write_whole(filesystem, f"{folder}/{name}", content)
    return name


def shards_present(filesystem: fs.FileSystem, folder: str) -> dict[int, str]:
    """Shard number -> file name, of the shards in a folder."""
    names = (_SHARD_NAME.fullmatch(name) for name in file_names(filesystem, folder))
    return {int(match[1]): match[0] for match in names if match}


def write_manifest(filesystem: fs.FileSystem, folder: str, spec: CacheSpec) -> None:
    """Declare a cache complete, after verifying every shard and counting what is in it.

    Raises:
        DamagedShardError: shards that are truncated or changed.
        StorageError: shards that this machine does not see.
    """
    present = shards_present(filesystem, folder)
    if lacking := sorted(set(range(len(spec.shard_rows))) - present.keys()):
        raise StorageError(
            f"shards {lacking[:5]} were written but are not in {folder}: on a cluster the cache must be a folder "
            "that all nodes see, such as gs://... or s3://... (--cache)"
        )
    names = [present[number] for number in range(len(spec.shard_rows))]
    shards: list[dict[str, object]] = []
    n_rejected = n_raised_cutoff = 0
    for name, table in zip(names, _verified_tables(filesystem, folder, names), strict=True):
        shards.append({"file": name, "rows": len(table), "sha256": _checksum(name)})
        n_rejected += len(table) - table["reason"].null_count
        n_raised_cutoff += _count_raised(table, spec)
    manifest = {
        "key": spec.key,
        **asdict(spec),
        "n_rejected": n_rejected,
        "n_raised_cutoff": n_raised_cutoff,
        "shards": shards,
    }
    write_whole(filesystem, f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())


def read_cache(filesystem: fs.FileSystem, folder: str, spec: CacheSpec) -> StoredGraphs:
    """Read and verify a whole cache.

    Raises:
        StaleCacheError: no complete cache, or one made of something else than `spec`.
        DamagedShardError: shards that are truncated, changed or missing.
    """
    try:
        manifest = json.loads(read_whole(filesystem, f"{folder}/{MANIFEST}"))
    except (FileNotFoundError, ValueError):
        raise StaleCacheError(f"no complete cache in {folder}: run data/build_cache.py") from None
    if not isinstance(manifest, dict):
        raise StaleCacheError(f"{folder}/{MANIFEST} is not a manifest: run data/build_cache.py")
    stored_spec = {name: manifest.get(name) for name in asdict(spec)}
    shards = manifest.get("shards")
    if stored_spec != asdict(spec) or not isinstance(shards, list) or len(shards) != len(spec.shard_rows):
        raise StaleCacheError(f"the cache in {folder} was made of {stored_spec}, expected {asdict(spec)}")
    names = [str(shard.get("file") if isinstance(shard, dict) else shard) for shard in shards]
    if wrong := [name for name in names if not _SHARD_NAME.fullmatch(name)]:
        raise StaleCacheError(f"{folder}/{MANIFEST} is damaged, {wrong[0]!r} is no shard: run data/build_cache.py")
    columns: list[pa.Table] = []  # that are no part of a graph

    def parts() -> Iterator[Graphs]:
        """Shard after shard, each let go as soon as it is part of the whole."""
        for table in _verified_tables(filesystem, folder, names):
            columns.append(table.select(["id", "formula", "reason", "notes", "cutoff_angstrom"]))
            yield _decode(table)

    graphs = concatenate(parts())
    whole = pa.concat_tables(columns)
    return StoredGraphs(
        ids=whole["id"].to_pylist(),
        formulas=whole["formula"].to_pylist(),
        reasons=whole["reason"].to_pylist(),
        notes=[tuple(of_row or ()) for of_row in whole["notes"].to_pylist()],
        graphs=graphs,
        n_raised_cutoff=_count_raised(whole, spec),
    )


def _verified_tables(filesystem: fs.FileSystem, folder: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """Read shards whose content has the checksum in their name; at the end, name all that have not."""
    damaged = []
    for name in names:
        try:
            content = read_whole(filesystem, f"{folder}/{name}")
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() == _checksum(name):
            yield pq.read_table(pa.BufferReader(content))
        else:
            damaged.append(name)
    if damaged:
        raise DamagedShardError(folder, damaged)


def _checksum(name: str) -> str:
    return name.removesuffix(".parquet").rsplit("-", 1)[1]


def _count_raised(table: pa.Table, spec: CacheSpec) -> int:
    """Rows whose cutoff was raised because an atom had no neighbour."""
    return int((table["cutoff_angstrom"].to_numpy() > spec.atom_graph_cutoff).sum())


def _decode(table: pa.Table) -> Graphs:
    """Parquet columns of one shard to flat arrays; no Python loop runs over rows."""

    def column(name: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        """Values of a binary column one behind another, and how many each row has."""
        array = pa.concat_arrays(table[name].chunks).fill_null(b"")
        offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
        values = np.frombuffer(array.buffers()[2] or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
        return values.view(dtype), np.diff(offsets) // np.dtype(dtype).itemsize

    numbers, n_atoms = column("numbers", np.uint8)
    frac_coords, _ = column("frac_coords", np.float32)
    lattice_values, lattice_lengths = column("lattice", np.float32)
    image_planes, image_lengths = column("bond_image", np.int8)
    atom_planes, _ = column("bond_atoms", np.uint8)
    lattices = np.zeros((len(table), 3, 3), dtype=np.float32)
    lattices[lattice_lengths > 0] = lattice_values.reshape(-1, 3, 3)
    n_bonds = image_lengths // 3
    bond_atoms, bond_image = _unpack_bonds(n_atoms, n_bonds, atom_planes, image_planes)
    return Graphs(
        numbers=numbers,
        frac_coords=frac_coords.reshape(-1, 3),
        lattices=lattices,
        bond_atoms=bond_atoms,
        bond_image=bond_image,
        atom_start=starts(n_atoms),
        bond_start=starts(n_bonds),
    )


def _index_type(n_atoms: int) -> type:
    return np.uint8 if n_atoms <= _SMALL else np.uint16


@compiled
def _unpack_bonds(
    n_atoms: np.ndarray, n_bonds: np.ndarray, atom_planes: np.ndarray, image_planes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Planes of each row back to one (i, j) and one (a, b, c) a bond."""
    total = n_bonds.sum()
    bond_atoms = np.empty((total, 2), dtype=np.uint16)
    bond_image = np.empty((total, 3), dtype=np.int8)
    bond = 0
    byte = 0  # in atom_planes
    for row in range(len(n_bonds)):
        count = n_bonds[row]
        width = 1 if n_atoms[row] <= _SMALL else 2
        for k in range(count):
            for side in range(2):
                position = byte + (side * count + k) * width
                index = np.uint16(atom_planes[position])
                if width == 2:
                    index += np.uint16(atom_planes[position + 1]) << np.uint16(8)
                bond_atoms[bond + k, side] = index
            for axis in range(3):
                bond_image[bond + k, axis] = image_planes[3 * bond + axis * count + k]
        bond += count
        byte += 2 * count * width
    return bond_atoms, bond_image
