"""Random damage to the bytes and the text of a file, as disks, editors and cut transfers do it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]

# What stands where a value stood: of another type, of an absurd size, or text that terminals and encoders trip over.
VALUES = (
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b"2147483648",
    b"[]",
    b"{}",
    b"[[[[[[]]]]]]",
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"\\u001b[31m"',
    b'"\xef\xbb\xbf\xe2\x80\xae"',
    b'"../../etc"',
    b'"9999-99-99"',
)
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
BYTES = (b"\x00", b"\x1b", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"{", b"\xed\xa0\x80", b"&", b"*", b"\t", b":")


def place(data: bytes, rng: random.Random) -> int:
    """Return an offset into `data`; half of them lie in its first or last 64 bytes, where formats keep their frame."""
    if rng.random() < 0.5:
        return rng.randrange(len(data))
    near = rng.randrange(min(64, len(data)))
    return near if rng.random() < 0.5 else len(data) - 1 - near


def span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """Return the start and end of a range of `data`, one byte to a quarter of it."""
    start = place(data, rng)
    return start, min(len(data), start + rng.randint(1, 1 + len(data) // 4))


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    at = place(data, rng)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def overwrite(data: bytes, rng: random.Random) -> bytes:
    start, end = span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def zero(data: bytes, rng: random.Random) -> bytes:
    start, end = span(data, rng)
    return data[:start] + bytes(end - start) + data[end:]


def delete(data: bytes, rng: random.Random) -> bytes:
    start, end = span(data, rng)
    return data[:start] + data[end:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = span(data, rng)
    return data[:end] + data[start:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: place(data, rng)]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = place(data, rng)
    return data[:at] + rng.choice(BYTES) + data[at:]


def empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def replace_value(data: bytes, rng: random.Random) -> bytes:
    """Put one of VALUES where a string, a number or a constant stood."""
    found = list(VALUE.finditer(data))
    if not found:
        return insert(data, rng)
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(VALUES) + data[one.end() :]


def change_digit(data: bytes, rng: random.Random) -> bytes:
    found = [i for i, byte in enumerate(data) if 48 <= byte < 58]
    if not found:
        return insert(data, rng)
    at = rng.choice(found)
    return data[:at] + bytes([rng.choice([b for b in range(48, 58) if b != data[at]])]) + data[at + 1 :]


def delete_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def repeat_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"".join(lines)


def indent_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = b"  " + lines[at] if rng.random() < 0.5 else lines[at].lstrip()
    return b"".join(lines)


OF_BYTES: tuple[Damage, ...] = (flip_bit, overwrite, zero, delete, repeat, truncate, insert, empty)
OF_TEXT: tuple[Damage, ...] = (
    flip_bit,
    delete,
    repeat,
    truncate,
    insert,
    replace_value,
    replace_value,
    change_digit,
    delete_line,
    repeat_line,
    indent_line,
)


def is_text(data: bytes) -> bool:
    """Say whether `data` looks like text: no zero byte, and UTF-8."""
    try:
        return b"\0" not in data and bool(data.decode())
    except UnicodeDecodeError:
        return False


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return (name of the damage, `data` with it), one that changes something."""
    if not data:
        return "insert", rng.choice(BYTES)
    while True:
        change = rng.choice(OF_TEXT if is_text(data) else OF_BYTES)
        if (damaged := change(data, rng)) != data:
            return change.__name__, damaged
