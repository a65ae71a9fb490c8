"""Finds the reader for what a user points at: a file or folder in one of the layouts that people have, or the demo."""

from __future__ import annotations

import glob
import gzip
import hashlib
import io
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.crystals.crystal import Crystal
from data.crystals.formats.structure_files import structure_file_format
from data.crystals.layouts.ase_files import read_ase_database, read_frames
from data.crystals.layouts.csv_files import read_csv_table
from data.crystals.layouts.folders import read_folder
from data.crystals.layouts.json_files import has_records_in_lines, read_json_table
from data.crystals.layouts.matbench_files import GZIP, MEMBERS, read_matbench_text
from data.crystals.layouts.parquet_files import read_parquet_table
from data.crystals.layouts.source import GROUP_COLUMN, Source, content_of, joined
from data.crystals.layouts.tables import ID_COLUMNS, TEXT_COLUMNS, Table, id_column, source_of
from data.crystals.rows import GzippedText, pack_crystal
from data.crystals.task_table import LAYOUTS
from data.json_spans import decompressed, object_members
from data.row_numbers import counted
from data.task import TaskError

_ZIP = b"PK\x03\x04"
_SQLITE = b"SQLite format 3\x00"
_PARQUET = b"PAR1"
_PICKLES = (".pkl", ".pickle", ".p", ".joblib")
_ENDINGS = (
    ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".pq", ".xyz", ".extxyz", ".db", ".gz", ".zip",
)  # fmt: skip


def read_path(path: Path) -> Source:
    """Read a file or folder of a user's own.

    Raises:
        TaskError: it is in none of the layouts that are read, or not as its layout should be.
    """
    if path.is_dir():
        return read_folder(path)
    name = path.name.lower()
    if name.removesuffix(".gz").endswith(_PICKLES):
        raise TaskError(
            f"{path} is a pickle by its name; reading one runs whatever code is in it, so none is read. Save the table "
            "as Parquet or JSON: structures as dictionaries, `df['structure'] = [s.as_dict() for s in df['structure']]`"
        )
    content = content_of(path)
    if content.startswith(_SQLITE):
        del content
        return read_ase_database(path)
    if content.startswith(_PARQUET) or name.endswith((".parquet", ".pq")):
        del content
        return source_of(path, read_parquet_table(path))
    if content.startswith((GZIP, _ZIP)):
        name, text = _unpacked(path, content)
    else:
        text = content
    sha256, is_gzip = hashlib.sha256(content).hexdigest(), content.startswith(GZIP)
    del content
    if name.endswith((".xyz", ".extxyz")):
        return read_frames(path, bytes(text))
    if name.endswith((".csv", ".tsv")):
        return _read_csv(path, bytes(text))
    if text[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") or name.endswith(".json"):
        return _read_json(path, sha256, is_gzip, text)
    if structure_file_format(name):
        raise TaskError(f"{path} is one structure; put it into a folder with others and a CSV of their targets")
    raise TaskError(f"{path} is nothing that is read as a task. {LAYOUTS}")


def task_name(path: Path) -> str:
    """Names a task after its file or folder, without the endings that tell the layout."""
    name = path.resolve().name
    while (stem := re.sub(rf"({'|'.join(map(re.escape, _ENDINGS))})$", "", name, flags=re.IGNORECASE)) not in (
        "",
        name,
    ):
        name = stem
    return name


def read_demo(path: Path) -> Source:
    """Read the data set that comes with the package, a Parquet file of flat arrays.

    Raises:
        TaskError: the file is missing or damaged.
    """
    content = content_of(path)
    try:
        table = pq.read_table(io.BytesIO(content)).to_pydict()
        payloads = [
            pack_crystal(Crystal(np.array(numbers), np.array(frac_coords), np.array(lattice)))
            for numbers, frac_coords, lattice in zip(
                table["numbers"], table["frac_coords"], table["lattice"], strict=True
            )
        ]
        columns = {"e_form": table["e_form"], GROUP_COLUMN: table["prototype"]}
        ids = table["id"]
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise TaskError(f"the demo data {path} is damaged ({error}); install the package again") from None
    buffer, spans = joined(payloads)
    sha256 = hashlib.sha256(content).hexdigest()
    return Source(ids, columns, ids, "packed", buffer, spans, sha256, counted(len(ids)))


def _read_csv(path: Path, content: bytes) -> Source:
    """Reads a table of formulas or structures; else of targets for structure files that lie beside it."""
    table = read_csv_table(path, content)
    has_inputs = {name.lower() for name in table.columns} & (TEXT_COLUMNS - {*ID_COLUMNS, "file", GROUP_COLUMN})
    if not has_inputs and len(table) and _names_what_lies_beside(path, table):
        return read_folder(path.parent, path)
    return source_of(path, table)


def _names_what_lies_beside(path: Path, table: Table) -> bool:
    """Says whether one of the first rows of a table names a neighbour of it; to look for all could take minutes."""
    names = list(table.columns)
    column = next((name for name in names if name.lower() == "file"), id_column(names) or names[0])
    return any(
        neighbour.is_dir() or structure_file_format(neighbour.name) is not None
        for cell in table.columns[column][:10]
        if (key := str(cell).lstrip("/"))
        for neighbour in path.parent.glob(f"{glob.escape(key)}*")
    )


def _read_json(path: Path, sha256: str, is_gzip: bool, text: bytes | bytearray) -> Source:
    start = text.find(b"{")
    is_object = start >= 0 and not text[:start].lstrip(b"\xef\xbb\xbf").strip()
    if not is_object or has_records_in_lines(text):
        return source_of(path, read_json_table(path, text))
    try:
        members = object_members(text, start)
    except ValueError as error:
        raise TaskError(
            f"{path} is not a complete JSON file ({error}); delete it and download it again, or mend it"
        ) from None
    if members.keys() >= MEMBERS and "schema" not in members:
        return read_matbench_text(path, sha256, GzippedText(path) if is_gzip else bytes(text), text, members)
    if {"ids", "nextid"} <= members.keys():
        return read_ase_database(path)
    return source_of(path, read_json_table(path, text))


def _unpacked(path: Path, content: bytes) -> tuple[str, bytes | bytearray]:
    """Unpacks a gzip or zip file, and gives the name and content of what it holds."""
    if content.startswith(GZIP):
        try:
            return path.name.lower().removesuffix(".gz"), decompressed(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TaskError(f"{path} is not a complete gzip file ({error}); download it again") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [
                member
                for member in archive.infolist()
                if not member.is_dir()
                and not member.filename.startswith("__MACOSX")
                and not _is_hidden(member.filename)
            ]
            if len(members) != 1:
                raise TaskError(
                    f"{path} holds {len(members)} files; expected one, such as JARVIS's JSON. Unpack a folder first"
                )
            return members[0].filename.lower(), archive.read(members[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise TaskError(f"{path} is not a zip file that can be read ({error}); download it again") from None


def _is_hidden(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(".")
