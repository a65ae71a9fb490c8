"""Shards give back exactly what was put in, and damaged, missing or foreign ones are found and named."""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from data.crystals.crystal import crystal_from_structure
from data.crystals.graphs import CONVERTER_VERSION, Graph, Graphs, convert, stack
from data.crystals.shards import (
    MANIFEST,
    CacheSpec,
    DamagedShardError,
    StaleCacheError,
    encode_shard,
    read_cache,
    shards_present,
    write_manifest,
    write_shard,
)
from data.stores.storage import StorageError, file_names, open_folder, read_whole, write_whole

REJECTED = "overlapping atoms: sites 0 and 1"
NOTHING = Graph(  # what a rejected row reads as
    numbers=np.zeros(0, np.uint8),
    frac_coords=np.zeros((0, 3), np.float32),
    lattice=np.zeros((3, 3), np.float32),
    bond_atoms=np.zeros((0, 2), np.uint16),
    bond_image=np.zeros((0, 3), np.int8),
    cutoff_angstrom=6.0,
)


def chain(n_atoms: int) -> Structure:
    """Atoms in a row, so that both the first and the last index occur in a bond."""
    frac_coords = np.column_stack([np.arange(n_atoms) / n_atoms, np.zeros((n_atoms, 2))])
    return Structure(Lattice.orthorhombic(2.5 * n_atoms, 5.2, 5.3), ["Cu"] * n_atoms, frac_coords)


@pytest.fixture(scope="module")
def rows(crystals, real_structures) -> list[Graph | str]:
    """25 graphs and rejected rows; in shards of four, one shard is all rejected and one has only big graphs."""
    lone = Structure(Lattice.cubic(9), ["Ar"], [[0, 0, 0]])
    big = [chain(257), crystals["384 atoms"], chain(256), chain(300)]
    structures = [*crystals.values(), lone, *real_structures[:9]]
    graphs: list[Graph | str] = [convert(crystal_from_structure(one), 6) for one in structures]
    bigs = [convert(crystal_from_structure(one), 6) for one in big]
    return [REJECTED, *graphs[:7], *["disordered"] * 4, *bigs, graphs[7], REJECTED, *graphs[8:], REJECTED]


@pytest.fixture
def spec(rows) -> CacheSpec:
    return CacheSpec(
        data_sha256="0" * 64, atom_graph_cutoff=6.0, bond_graph_cutoff=3.0, n_rows=len(rows), rows_per_shard=4
    )


def notes_of(row: int) -> tuple[str, ...]:
    return tuple(f"note {k} of {row}" for k in range(row % 3))


def write_cache(address: str, spec: CacheSpec, rows: list[Graph | str]):
    filesystem, folder = open_folder(address)
    for number, span in enumerate(spec.shard_rows):
        some = [rows[k] for k in span]
        formulas = [None if isinstance(one, str) else f"formula {k}" for k, one in zip(span, some, strict=True)]
        content = encode_shard([f"id {k}" for k in span], formulas, some, [notes_of(k) for k in span])
        write_shard(filesystem, folder, number, content)
    write_manifest(filesystem, folder, spec)
    return filesystem, folder


def assert_same_graphs(found: Graphs, expected: Graphs) -> None:
    for field in fields(Graphs):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert one.dtype == other.dtype, field.name
        np.testing.assert_array_equal(one, other, err_msg=field.name)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_what_is_read_is_what_was_written(rows, spec, where, tmp_path):
    address = str(tmp_path / "new" / "cache") if where == "local" else f"memory://{tmp_path.name}/cache"
    stored = read_cache(*write_cache(address, spec, rows), spec)
    assert stored.ids == [f"id {k}" for k in range(len(rows))]
    assert stored.reasons == [one if isinstance(one, str) else None for one in rows]
    assert stored.formulas == [None if isinstance(one, str) else f"formula {k}" for k, one in enumerate(rows)]
    assert stored.notes == [() if isinstance(one, str) else notes_of(k) for k, one in enumerate(rows)]
    assert_same_graphs(stored.graphs, stack([NOTHING if isinstance(one, str) else one for one in rows]))
    assert stored.n_raised_cutoff == 1
    assert stored.graphs.bond_atoms.max() > 255


@pytest.mark.parametrize("kept", [["disordered"], ["disordered", "empty"]])
def test_a_cache_of_rejected_rows_only(kept, tmp_path):
    spec = CacheSpec("0" * 64, 6.0, 3.0, n_rows=len(kept), rows_per_shard=1)
    stored = read_cache(*write_cache(str(tmp_path), spec, kept), spec)
    assert stored.reasons == kept
    assert_same_graphs(stored.graphs, stack([NOTHING] * len(kept)))


@pytest.mark.parametrize("cutoff", [5.1, 5.3, 6.0])
def test_a_cutoff_that_single_precision_rounds_up_is_not_raised(cutoff, crystals, tmp_path):
    lone = Structure(Lattice.cubic(9), ["Ar"], [[0, 0, 0]])
    rows = [convert(crystal_from_structure(one), cutoff) for one in (crystals["triclinic"], lone)]
    spec = CacheSpec("0" * 64, cutoff, 3.0, n_rows=2)
    assert read_cache(*write_cache(str(tmp_path), spec, rows), spec).n_raised_cutoff == 1


def test_the_manifest_tells_what_the_cache_holds(rows, spec, tmp_path):
    write_cache(str(tmp_path), spec, rows)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    shards = manifest.pop("shards")
    assert manifest == {
        "key": spec.key,
        "data_sha256": "0" * 64,
        "atom_graph_cutoff": 6.0,
        "bond_graph_cutoff": 3.0,
        "n_rows": len(rows),
        "converter_version": CONVERTER_VERSION,
        "rows_per_shard": 4,
        "n_rejected": sum(isinstance(one, str) for one in rows),
        "n_raised_cutoff": 1,
    }
    assert [shard["rows"] for shard in shards] == [len(span) for span in spec.shard_rows]
    for number, shard in enumerate(shards):
        content = (tmp_path / shard["file"]).read_bytes()
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()
        assert shard["file"] == f"shard-{number:05d}-{shard['sha256']}.parquet"


def shard_file(folder: Path, number: int) -> Path:
    return folder / shards_present(*open_folder(folder))[number]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
def test_damaged_shards_are_all_named_at_open(damage, rows, spec, tmp_path):
    filesystem, folder = write_cache(str(tmp_path), spec, rows)
    victims = [shard_file(tmp_path, number) for number in (1, 4)]
    for victim in victims:
        damage(victim)
    with pytest.raises(DamagedShardError, match=victims[1].name) as error:
        read_cache(filesystem, folder, spec)
    assert error.value.names == [victim.name for victim in victims]


def test_no_manifest_is_written_over_damaged_shards(rows, spec, tmp_path):
    filesystem, folder = write_cache(str(tmp_path), spec, rows)
    (tmp_path / MANIFEST).unlink()
    flip_a_byte(shard_file(tmp_path, 2))
    with pytest.raises(DamagedShardError):
        write_manifest(filesystem, folder, spec)
    assert not (tmp_path / MANIFEST).exists()
    with pytest.raises(StaleCacheError, match="no complete cache"):
        read_cache(filesystem, folder, spec)


CHANGES = [
    {"data_sha256": "1" * 64},
    {"atom_graph_cutoff": 5.0},
    {"bond_graph_cutoff": 2.5},
    {"n_rows": 24},
    {"converter_version": CONVERTER_VERSION + 1},
    {"rows_per_shard": 5},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_other_data_cutoffs_or_converter_have_another_key_and_refuse_this_cache(change, rows, spec, tmp_path):
    other = replace(spec, **change)
    assert other.key != spec.key
    location = write_cache(str(tmp_path), spec, rows)
    with pytest.raises(StaleCacheError, match="was made of"):
        read_cache(*location, other)


def test_the_key_is_the_same_in_every_process_and_release():
    """Should this fail, every cache built so far would be built again: is that meant?"""
    spec = CacheSpec("0" * 64, 6.0, 3.0, n_rows=26, converter_version=1, rows_per_shard=4)
    assert spec.key == "7612a23c39b7cfff"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'"manifest"'])
def test_a_manifest_of_something_else_is_refused(content, rows, spec, tmp_path):
    location = write_cache(str(tmp_path), spec, rows)
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(StaleCacheError, match=r"build_cache\.py|was made of"):
        read_cache(*location, spec)


@pytest.mark.parametrize("shard", [{}, {"fine": "shard"}, {"file": 3}, {"file": "../../other.parquet"}, "a", None])
def test_a_manifest_that_names_no_shard_is_refused(shard, rows, spec, tmp_path):
    filesystem, folder = write_cache(str(tmp_path), spec, rows)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["shards"][1] = shard
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(StaleCacheError, match=r"manifest.json is damaged, .* is no shard: run data/build_cache.py"):
        read_cache(filesystem, folder, spec)


def test_a_shortened_list_of_shards_is_refused(rows, spec, tmp_path):
    location = write_cache(str(tmp_path), spec, rows)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"shards": manifest["shards"][:-1]}))
    with pytest.raises(StaleCacheError):
        read_cache(*location, spec)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_storage_writes_whole_files_and_lists_them(where, tmp_path):
    address = str(tmp_path / "a b" / "é") if where == "local" else f"memory://{tmp_path.name}/a b"
    filesystem, folder = open_folder(address)
    assert file_names(filesystem, folder) == []
    with pytest.raises(FileNotFoundError):
        read_whole(filesystem, f"{folder}/x")
    for content in (b"first", b"second, over the first"):
        write_whole(filesystem, f"{folder}/x", content)
        assert read_whole(filesystem, f"{folder}/x") == content
    assert file_names(filesystem, folder) == ["x"]


def test_a_write_survives_a_cleaner_that_takes_its_half_done_file(tmp_path, monkeypatch):
    """Two builds of one cache: one is done and removes leftovers while the other is about to rename."""
    filesystem, folder = open_folder(tmp_path)

    class Interfering:
        def __init__(self) -> None:
            self.n_moves = 0

        def move(self, source: str, target: str) -> None:
            self.n_moves += 1
            if self.n_moves == 1:
                Path(source).unlink()
            filesystem.move(source, target)

        def __getattr__(self, name: str):
            return getattr(filesystem, name)

    write_whole(Interfering(), f"{folder}/x", b"content")
    assert (tmp_path / "x").read_bytes() == b"content"


def test_an_unknown_scheme_says_what_can_be_opened():
    with pytest.raises(StorageError, match=r"cannot open 'nowhere://bucket/x'.*s3://"):
        open_folder("nowhere://bucket/x")
