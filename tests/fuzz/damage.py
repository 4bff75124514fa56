"""Damage to files: their bytes, their text, and what stands in their place."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import yaml

from fuzz import values

HUGE = 64 * 2**30
"""Size of a file that takes no room on the disk."""


def of_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return damaged bytes, and words for it."""
    if not data:
        return rng.randbytes(16), "random bytes for nothing"
    at = rng.randrange(len(data))
    some = rng.choice((1, 2, 8, 64, 4096))
    if rng.random() < 0.25:
        changed = bytearray(data)
        number = rng.choice((1, 1, 3, 20))
        for _ in range(number):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(changed), f"{number} bits flipped"
    return rng.choice(
        (
            (data[:at], f"cut at {at} of {len(data)}"),
            (data[:at], f"cut at {at} of {len(data)}"),
            (data[at:], f"the first {at} bytes cut off"),
            (data[:at] + rng.randbytes(some) + data[at:], f"{some} bytes inserted at {at}"),
            (data[:at] + bytes(some) + data[at + some :], f"{some} zeros at {at}"),
            (data[: at + some] + data[at:], f"{some} twice at {at}"),
            (bytes(len(data)), "all zeros"),
            (rng.randbytes(min(len(data), 4096)), "random bytes"),
            (b"\xef\xbb\xbf" + data, "with a byte order mark"),
            (data.replace(b"\n", b"\r\n"), "with CR LF"),
            (data + rng.choice((b"\x00", b"\xff", b"\n", data)), "with something behind it"),
        )
    )


def of_text(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return a damaged text."""
    if rng.random() < 0.25:
        encoding = rng.choice(("utf-16", "utf-16-le", "utf-32", "cp037"))
        return data.decode("utf-8", "replace").encode(encoding, "replace"), f"as {encoding}"
    return of_bytes(rng, data)


def in_json(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return JSON with other values, or damaged text."""
    if rng.random() < 0.15:
        return of_text(rng, data)
    value, words = json.loads(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value, word = values.damaged(rng, value, values.RAW_JSON)
        words.append(word)
    return _encoded(values.to_json(value)), ", ".join(words)


def in_lines(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return JSON lines with one of them changed."""
    lines = data.splitlines() or [b"{}"]
    i = rng.randrange(len(lines))
    act = rng.randrange(8)
    if act == 0:
        return of_text(rng, data)
    if act == 1:
        rng.shuffle(lines)
        return b"\n".join(lines), "lines shuffled"
    if act == 2:
        lines.insert(i, lines[i])
        return b"\n".join(lines), f"line {i} twice"
    if act == 3:
        return b"\n".join(lines[:i]), f"only {i} lines"
    if act == 4:
        text = rng.choice((*values.RAW_JSON, "1", "[]", "null", '"x"'))
        lines[i] = _encoded(text)
        return b"\n".join(lines), f"line {i} is {text[:40]!r}"
    value, word = values.damaged(rng, json.loads(lines[i]), values.RAW_JSON)
    lines[i] = _encoded(values.to_json(value).replace("\n", " "))
    return b"\n".join(lines), f"line {i}: {word}"


def in_yaml(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return YAML with other values, or damaged text."""
    if rng.random() < 0.15:
        return of_text(rng, data)
    value, words = yaml.safe_load(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value, word = values.damaged(rng, value, values.RAW_YAML)
        words.append(word)
    return _encoded(values.to_yaml(value)), ", ".join(words)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def of_entry(rng: random.Random, path: Path, linked: Path) -> str:
    """Replace a file by something else, and return words for it.

    Args:
        rng: What chooses.
        path: The file.
        linked: Folder beside the case's where links may lead.
    """
    old = path.read_bytes() if path.is_file() else b""
    act = rng.randrange(10)
    remove(path)
    if act <= 1:
        return f"{path.name} missing"
    if act == 2:
        path.touch()
        return f"{path.name} empty"
    if act == 3:
        path.mkdir()
        return f"{path.name} is a directory"
    if act == 4:
        target = linked / f"{path.name}.elsewhere"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(old)
        path.symlink_to(target)
        return f"{path.name} is a link to its copy elsewhere"
    if act == 5:
        path.symlink_to(path.name)
        return f"{path.name} is a link to itself"
    if act == 6:
        path.symlink_to("nowhere/at-all")
        return f"{path.name} is a dangling link"
    if act == 7:
        os.mkfifo(path)
        return f"{path.name} is a FIFO that nobody writes to"
    if act == 8:
        path.write_bytes(old)
        path.chmod(0)
        return f"{path.name} is unreadable"
    with path.open("wb") as file:
        file.truncate(HUGE)
    return f"{path.name} is {HUGE >> 30} GiB of zeros"


def remove(path: Path) -> None:
    """Remove whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


BY_SUFFIX = {".json": in_json, ".jsonl": in_lines, ".yaml": in_yaml}


def of_file(rng: random.Random, path: Path, linked: Path) -> str:
    """Damage one file by what it is, and return words for it."""
    from fuzz import tables, tensors

    by_suffix = {**BY_SUFFIX, ".safetensors": tensors.damaged, ".parquet": tables.damaged}
    if not path.is_file() or path.is_symlink() or path.stat().st_size > 10**8:
        return f"{path.name} as it is"
    if rng.random() < 0.05:  # what is whole must work
        return f"{path.name} whole"
    if rng.random() < 0.12:
        return of_entry(rng, path, linked)
    old = path.read_bytes()
    try:
        data, words = by_suffix.get(path.suffix, of_bytes)(rng, old)
    except Exception:  # damaged before, so that it cannot be read as what it is
        data, words = of_bytes(rng, old)
    path.write_bytes(data)
    return f"{path.name}: {words}"
