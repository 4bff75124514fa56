"""Damage to safetensors files: header, types, shapes, places, and the numbers themselves."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

from fuzz import damage, values

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E5M2", "C64", "x", "")
SHAPES = ([], [0], [-1], [1], [2**63], [2**40, 2**40], [1.5], ["a"], None, [[1]], [1] * 70)
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, 0.0, 1e-45)


def damaged(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return a damaged safetensors file, and words for it."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    act = rng.randrange(10)
    if act == 0:
        return damage.of_bytes(rng, data)
    if act == 1:
        size = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(data)))
        return struct.pack("<Q", size) + data[8:], f"header of {size} bytes"
    if act == 2:
        text = rng.choice((*values.RAW_JSON, "[]", "null", "{}"))
        return _joined(text.encode("utf-8", "surrogatepass"), body), f"header {text[:40]!r}"
    if act == 3:
        value, words = values.damaged(rng, header, values.RAW_JSON)
        return _joined(values.to_json(value).encode("utf-8", "surrogatepass"), body), words
    names = [name for name in header if name != "__metadata__"]
    if act == 4 or not names:
        header["__metadata__"] = values.atom(rng, values.RAW_JSON)
        return _joined(values.to_json(header).encode("utf-8", "surrogatepass"), body), "metadata"
    name = rng.choice(names)
    if act <= 6:
        words = _other_header(rng, header, name)
        return _joined(json.dumps(header).encode(), body), words
    return _joined(json.dumps(header).encode(), _other_numbers(rng, header[name], body)), (
        f"other numbers in {name}"
    )


def _joined(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _other_header(rng: random.Random, header: dict[str, Any], name: str) -> str:
    entry = header[name]
    act = rng.randrange(6)
    if act == 0:
        entry["dtype"] = rng.choice(DTYPES)
        return f"{name} is {entry['dtype']!r}"
    if act == 1:
        entry["shape"] = rng.choice((*SHAPES, entry["shape"][::-1], [*entry["shape"], 1]))
        return f"{name} has shape {entry['shape']}"
    if act == 2:
        start, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            ([end, start], [0, 0], [start, 2**62], [-1, end], [start + 1, end + 1], [start], None)
        )
        return f"{name} at {entry['data_offsets']}"
    if act == 3:
        del header[name]
        return f"{name} dropped"
    new = rng.choice((f"_orig_mod.{name}", f"module.{name}", "", "../x", "x" * 9000, f"{name}.2"))
    header[new] = header.pop(name)
    return f"{name} renamed to {new[:30]!r}"


def _other_numbers(rng: random.Random, entry: dict[str, Any], body: bytes) -> bytes:
    start, end = entry["data_offsets"]
    number = struct.pack("<f", rng.choice(FLOATS))
    size = end - start
    if rng.random() < 0.5:  # one of them
        at = start + 4 * rng.randrange(max(1, size // 4))
        return body[:at] + number + body[at + 4 :] if at + 4 <= end else body
    return body[:start] + (number * (size // 4 + 1))[:size] + body[end:]
