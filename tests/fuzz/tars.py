"""Archives as a stranger may make them: links, devices, names that lead out, and bombs."""

from __future__ import annotations

import functools
import gzip
import io
import lzma
import random
import tarfile
from pathlib import Path

LEAD_OUT = (
    "../evil.txt",
    "../../../evil.txt",
    "run/../../evil.txt",
    "/tmp/fuzz-evil.txt",
    "run/eval/../../../../evil.txt",
    "./run/./config.yaml",
    "run//config.yaml",
    "",
    ".",
    "..",
    "x" * 300,
    "/".join(["d"] * 500),
    "run/\x01\n.json",
    "run/\u202e.json",
    "run/checkpoints/last",
)
TARGETS = (
    "../outside/secret.json",
    "/etc/passwd",
    "../../../../outside",
    ".",
    "..",
    "/",
    "/dev/zero",
)
KINDS = {
    "fifo": tarfile.FIFOTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "contiguous": tarfile.CONTTYPE,
    "unknown kind": b"Q",
}
MANY = 20_000


def packed(rng: random.Random, folder: Path, outside: Path) -> tuple[bytes, str]:
    """Return an archive of a folder with one hostile thing in it, and words for it.

    Args:
        rng: What chooses.
        folder: What is packed: `archive.json` and the directory of a run.
        outside: Folder that links may point at.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    entries = [(str(p.relative_to(folder)), p) for p in files]
    act = rng.choice(
        (_nothing, _nothing, _lead_out, _link, _link, _kind, _twice, _through_link, _many, _zeros)
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        first = rng.random() < 0.5
        words = act(rng, archive, outside, entries) if first else ""
        for name, path in entries:
            _add_path(archive, name, path)
        words = words if first else act(rng, archive, outside, entries)
    data = buffer.getvalue()
    if act is _zeros:
        return _bomb(data), words
    kind = rng.choice(("xz", "xz", "xz", "gz", "plain"))
    made = {"xz": functools.partial(lzma.compress, preset=0), "gz": gzip.compress, "plain": bytes}
    return made[kind](data), f"{words}, {kind}"


def _add_path(archive: tarfile.TarFile, name: str, path: Path) -> None:
    if path.is_symlink():
        _add_link(archive, name, str(path.readlink()), tarfile.SYMTYPE)
    elif path.is_file() and path.stat().st_mode & 0o777 and path.stat().st_size < 10**8:
        _add(archive, name, path.read_bytes())
    else:
        _add(archive, name, b"")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _add_link(archive: tarfile.TarFile, name: str, target: str, kind: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    archive.addfile(entry)


def _nothing(rng, archive, outside, entries):
    return "packed"


def _lead_out(rng, archive, outside, entries):
    name = rng.choice((*LEAD_OUT, str(outside / "made.txt")))
    _add(archive, name, b'{"made": "by an archive"}')
    return f"member {name[:60]!r}"


def _link(rng, archive, outside, entries):
    kind, word = rng.choice(((tarfile.SYMTYPE, "symlink"), (tarfile.LNKTYPE, "hard link")))
    target = rng.choice((*TARGETS, str(outside / "secret.json")))
    name = rng.choice(entries)[0] if rng.random() < 0.7 else "run/link"
    entries[:] = [entry for entry in entries if entry[0] != name]
    _add_link(archive, name, target, kind)
    return f"{name} is a {word} to {target!r}"


def _kind(rng, archive, outside, entries):
    word, kind = rng.choice(list(KINDS.items()))
    name = rng.choice(entries)[0]
    entries[:] = [entry for entry in entries if entry[0] != name]
    entry = tarfile.TarInfo(name)
    entry.type, entry.devmajor, entry.devminor = kind, 1, 5
    archive.addfile(entry)
    return f"{name} is a {word}"


def _twice(rng, archive, outside, entries):
    name, path = rng.choice(entries)
    _add_path(archive, name, path)
    _add(archive, name.upper(), b"{}")
    return f"{name} twice"


def _through_link(rng, archive, outside, entries):
    """First a link to a directory outside, then a file below it."""
    target = rng.choice((str(outside), "../../../outside", "../.."))
    _add_link(archive, "run/door", target, tarfile.SYMTYPE)
    _add(archive, "run/door/made.txt", b"made by an archive")
    return f"a file through a link to {target!r}"


def _many(rng, archive, outside, entries):
    for i in range(MANY):
        archive.addfile(tarfile.TarInfo(f"run/eval/{i:06d}/summary.json"))
    return f"{MANY} members"


def _zeros(rng, archive, outside, entries):
    return "2 GiB of zeros"


@functools.cache
def _block() -> bytes:
    return lzma.compress(bytes(2**24), preset=0)


def _bomb(data: bytes) -> bytes:
    """Return an archive whose first member is 2 GiB of zeros: streams of xz may be joined."""
    head = tarfile.TarInfo("run/eval/000000/episodes.jsonl")
    head.size = 2**31
    return lzma.compress(head.tobuf()) + _block() * 128 + lzma.compress(data)
