"""Unpacks and decodes a structure file, and cuts its text into lines and numbers."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import re
import zlib

from data.crystals.crystal import BadCrystalError

_XZ_MEMORY = 256 << 20  # bytes that a decoder may take for its dictionary
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD]?[+-]\d+|[eEdD]\d+)?", re.ASCII)
_COUNT = re.compile(r"\d{1,9}", re.ASCII)


def unpacked(content: bytes, most_mib: int) -> bytes:
    """Unpacks a file that is packed by gzip, bzip2 or xz, as its first bytes tell, or not at all.

    Args:
        content: of the file.
        most_mib: how much may come out of it, in MiB.

    Raises:
        BadCrystalError: a damaged or cut file, or one that holds more.
    """
    limit = most_mib << 20
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(limit + 1)
        elif content.startswith(b"BZh"):
            content = bz2.BZ2File(io.BytesIO(content)).read(limit + 1)
        elif content.startswith(b"\xfd7zXZ\0"):
            unpacker = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            content = unpacker.decompress(content, max_length=limit + 1)
            if not unpacker.eof and len(content) <= limit:
                raise EOFError("the stream ends too early")
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise BadCrystalError(f"packed, and damaged or cut: {error}") from None
    if len(content) > limit:
        raise BadCrystalError(f"it holds more than {most_mib} MiB; no structure file of this kind is that long")
    return content


def text_lines(content: bytes) -> list[str]:
    """Cuts a text into lines that end with LF, CRLF or CR; it is in UTF-8, UTF-16 with its mark, or Latin-1.

    Raises:
        BadCrystalError: the bytes are no text.
    """
    encodings = ["utf-16"] if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ["utf-8-sig", "latin-1"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            # Not splitlines: it also cuts at characters that Latin-1 texts have within a line.
            return re.split("\r\n|\r|\n", text)
    raise BadCrystalError("it is no text: it holds bytes that no text has")


def number(text: str) -> float | None:
    """Reads a finite number as Fortran or C write it: `1`, `-.5`, `1.0D+00`, `1.5-100`; None for anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    exponent = (match[2] or "0").lstrip("eEdD")
    value = float(f"{text[: match.end(1)]}e{exponent}")
    return value if math.isfinite(value) else None


def count(text: str) -> int | None:
    """Reads a number of atoms, of nine digits at most; None for anything else."""
    return int(text) if _COUNT.fullmatch(text) else None
