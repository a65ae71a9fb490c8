"""Damages files as disks, editors and programs do, the same way for the same seed; no fixture, no test."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

_NUMBER = re.compile(rb"(?<![A-Za-z_\d.])[-+]?(?:\d+\.\d*|\.?\d+)(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][A-Za-z_0-9.\-/]{2,}")
_STRANGE = [
    b"\0", b"\x1a", b"\r", b"\n", b"\n\n", b"\t", b" ", b"'", b'"', b"#", b";", b"\n;\n", b",", b"\\", b"{", b"}", b"?",
    b".", b"\xff", b"\xe9", b"loop_\n", b"data_x\n", b"NaN", b"inf",
    # mark of the byte order, blank that does not break, accent, minus sign, wide digit
    *(text.encode() for text in ("\ufeff", "\u00a0", "\u00e9", "\u2212", "\uff11")),
]  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """A damaged file.

    Attributes:
        content: the file as it is now.
        how: the names of what was done to it.
        lines: of the original that were touched, by their index.
    """

    content: bytes
    how: list[str]
    lines: set[int]


def damaged(content: bytes, seed: str, *, text: bool = True) -> Damage:
    """A file with one to three damages, which follow from the seed alone; what needs lines or words, in text alone."""
    rng = random.Random(seed)
    how, lines = [], set[int]()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, damage = rng.choice(TEXT if text and not lines else BYTES)
        if text and not lines:
            content, lines = damage(content, rng)
        else:  # lines have moved: what follows touches any
            content, _ = damage(content, rng)
            lines |= set(range(content.count(b"\n") + 2)) if text else set()
        how.append(name)
    return Damage(content, how, lines)


def _line_at(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position)


def _flipped(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
    at = rng.randrange(max(1, len(content)))
    byte = bytes([content[at] ^ (1 << rng.randrange(8))]) if content else b"?"
    lines = {_line_at(content, at)}
    if b"\n" in (byte, content[at : at + 1]):
        lines.add(_line_at(content, at) + 1)
    return content[:at] + byte + content[at + 1 :], lines


def _shortened(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
    at = rng.randrange(max(1, len(content)))
    many = rng.choice((1, 1, 2, 5, 20))
    first, last = _line_at(content, at), _line_at(content, min(len(content), at + many))
    return content[:at] + content[at + many :], set(range(first, last + 1))


def _inserted(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(_STRANGE) + content[at:], {_line_at(content, at)}


def _truncated(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
    at = rng.randrange(max(1, len(content)))
    return content[:at], set(range(_line_at(content, at), content.count(b"\n") + 1))


def _by_lines(change: Callable[[list[bytes], random.Random], set[int]]) -> Callable:
    def damage(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
        lines = content.split(b"\n")
        touched = change(lines, rng)
        return b"\n".join(lines), touched

    return damage


def _line_twice(lines: list[bytes], rng: random.Random) -> set[int]:
    at = rng.randrange(len(lines))
    lines.insert(at, lines[at])
    return {at}


def _line_gone(lines: list[bytes], rng: random.Random) -> set[int]:
    at = rng.randrange(len(lines))
    del lines[at]
    return {at}


def _lines_swapped(lines: list[bytes], rng: random.Random) -> set[int]:
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return {one, other}


def _other_number(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
    matches = list(_NUMBER.finditer(content))
    if not matches:
        return _flipped(content, rng)
    match = rng.choice(matches)
    number = match[0]
    other = rng.choice(
        (b"-" + number, number + b"e1", number + b"e300", number + b"d-3", b"nan", b"1e308", b"inf", b"0", b"-1",
         b"1" + number, number + b"0", number.replace(b".", b","), number[::-1], b"0x1F", number + b"(3)", b"1/3",
         b"99999999999999999999")
    )  # fmt: skip
    return content[: match.start()] + other + content[match.end() :], {_line_at(content, match.start())}


def _other_word(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
    matches = list(_WORD.finditer(content))
    if not matches:
        return _flipped(content, rng)
    match = rng.choice(matches)
    word, at = match[0], rng.randrange(len(match[0]))
    other = rng.choice((word.upper(), word.lower(), word[:at] + word[at + 1 :], word + b"_x", word.replace(b"_", b"."),
                        rng.choice(matches)[0]))  # fmt: skip
    return content[: match.start()] + other + content[match.end() :], {_line_at(content, match.start())}


def _other_encoding(content: bytes, rng: random.Random) -> tuple[bytes, set[int]]:
    text = content.decode("utf-8", "replace")
    encoding = rng.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32", "cp500"))
    if rng.random() < 0.4:
        return text.replace("\n", rng.choice(("\r", "\r\n"))).encode(), set()
    return text.encode(encoding, "replace"), set()


BYTES = [("flip", _flipped), ("delete", _shortened), ("insert", _inserted), ("truncate", _truncated)]
TEXT = [
    *BYTES,
    ("line twice", _by_lines(_line_twice)),
    ("line gone", _by_lines(_line_gone)),
    ("lines swapped", _by_lines(_lines_swapped)),
    ("number", _other_number),
    ("number", _other_number),
    ("word", _other_word),
    ("word", _other_word),
    ("encoding", _other_encoding),
]
