"""Archives of strangers: only what `archive` writes is unpacked, within bounds; nothing runs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
from made_up_runs import make_run

from robo_razor.core.errors import ReportError, RunDirectoryError
from robo_razor.core.run import archive
from robo_razor.core.run.archive import pack, unpacked
from robo_razor.core.run.directory import RunDirectory
from robo_razor.core.settings.config import CompareConfig
from robo_razor.report.build import run_compare
from robo_razor.report.charts import figures

POINTS = [(0.4, 1.0, 0.0), (0.6, 0.9, 1.0)]


@pytest.fixture
def run(tmp_path):
    return Path(make_run(tmp_path / "run", POINTS))


def member(name, data=b"x", **settings):
    """Return a member of a tar file and its content."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in settings.items():
        setattr(info, key, value)
    return info, data


def members(packed):
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return [(m, tar.extractfile(m).read() if m.isfile() else b"") for m in tar.getmembers()]


def tar_of(*entries, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def refusal(tmp_path, data):
    file = tmp_path / "x.tar.xz"
    file.write_bytes(data)
    with pytest.raises(ReportError) as caught, unpacked([str(file)]):
        pass
    message = str(caught.value)
    assert message.startswith(f"'{file}' is not an archive that can be read: ")
    assert len(message) < 800
    return message


def with_members(run, *added):
    packed, _ = pack(run)
    return lzma.compress(tar_of(*members(packed), *added))


# --- What is taken --------------------------------------------------------------------------------


def test_checkpoints_and_everything_else_are_left_out(run, tmp_path):
    """Members that `archive` never writes are passed, whatever they hold."""
    model = "run/checkpoints/000010/pretrained_model"
    data = with_members(
        run,
        member(f"{model}/config.json", b"{}"),
        member(f"{model}/model.safetensors"),
        member(f"{model}/policy_preprocessor.json", b'{"steps": [{"class": "os.system"}]}'),
        member("run/inner.tar.xz", b"an archive in an archive"),
        member("run/eval/000010/probes.safetensors"),
        member("run/evil.py"),
    )
    (tmp_path / "x.tar.xz").write_bytes(data)
    with unpacked([str(tmp_path / "x.tar.xz")]) as [directory]:
        files = {str(p.relative_to(directory)) for p in Path(directory).rglob("*") if p.is_file()}
    evaluations = [f"eval/{s}/{n}" for s in ("000000", "000010") for n in archive_files()]
    assert files == {"config.yaml", "environment.json", *evaluations}


def archive_files():
    return ("summary.json", "episodes.jsonl")


def test_no_policy_of_an_archive_is_ever_loaded(run, tmp_path, monkeypatch):
    def film(*_):
        pytest.fail("a policy was loaded")

    monkeypatch.setattr(figures, "draw_figures", lambda *_: [])
    model = "run/checkpoints/000010/pretrained_model"
    data = with_members(run, member(f"{model}/config.json"), member(f"{model}/model.safetensors"))
    (tmp_path / "x.tar.xz").write_bytes(data)
    out = tmp_path / "report"
    config = CompareConfig(runs=(str(tmp_path / "x.tar.xz"),), out=str(out), videos=1)
    run_compare(config, film=film)
    report = json.loads((out / "report.json").read_text())
    assert report["videos"] == []
    assert any("no policy is ever loaded from an archive" in note for note in report["notes"])


def test_the_best_step_is_a_link_to_a_step_and_nothing_else(run, tmp_path):
    (run / "checkpoints").mkdir()
    (run / "checkpoints/best").symlink_to("000010")
    (tmp_path / "x.tar.xz").write_bytes(pack(run)[0])
    with unpacked([str(tmp_path / "x.tar.xz")]) as [directory]:
        best = Path(directory, "checkpoints/best")
        assert not best.is_symlink()
        assert (best.read_text(), RunDirectory(directory).best_step()) == ("000010", 10)
    (run / "checkpoints/best").unlink()
    for target in ("../../../etc", "/etc/passwd", "000010/..", ""):
        link = member("run/checkpoints/best", b"", type=tarfile.SYMTYPE, linkname=target)
        assert "is not a link to a step" in refusal(tmp_path, with_members(run, link))
    assert "is not a link" in refusal(tmp_path, with_members(run, member("run/checkpoints/best")))


def test_what_is_written_can_be_read_again(tmp_path):
    """Long names and letters of any language need extended headers."""
    name = "läuft-" + "x" * 120 + "-日本語"
    make_run(tmp_path / name, POINTS)
    (tmp_path / "x.tar.xz").write_bytes(pack(tmp_path / name)[0])
    with unpacked([str(tmp_path / "x.tar.xz")]) as [directory]:
        assert Path(directory).name == name
        assert Path(directory, "eval/000010/summary.json").is_file()


def test_what_could_not_be_read_again_is_not_written(run, monkeypatch, tmp_path):
    bad = Path(make_run(tmp_path / "a\nb", POINTS))
    with pytest.raises(RunDirectoryError, match="cannot be archived: the name"):
        pack(bad)
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(RunDirectoryError, match="too much for one archive"):
        pack(run)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        ("../x", "leads elsewhere"),
        ("run/../../x", "leads elsewhere"),
        ("/etc/x", "leads elsewhere"),
        ("C:/x", "leads elsewhere"),
        ("run\\x", "leads elsewhere"),
        ("run//x", "leads elsewhere"),
        ("run/\x1b[2J", "leads elsewhere"),
        ("run/a\nb", "leads elsewhere"),
        ("run/" + "x" * 300, "leads elsewhere"),
        ("run/" + "x/" * 20 + "y", "is too long"),
        ("run/" + "x/" * 600 + "y", "is too long"),
        ("run/Config.yaml/x/../y", "leads elsewhere"),
        ("RUN/config.yaml", "twice"),
        ("run/config.yaml", "twice"),
        ("archive.json", "twice"),
        ("run/config.yaml/eval/000000/summary.json", "both a file and a folder"),
        ("other/config.yaml", "'other' in it does not belong to 'run'"),
    ],
)
def test_names_that_lead_elsewhere_or_meet_are_refused(run, tmp_path, name, fragment):
    assert fragment in refusal(tmp_path, with_members(run, member(name)))
    assert not (tmp_path / "etc").exists()


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XGLTYPE,
        b"Z",
    ],
)
def test_links_devices_and_sparse_files_are_refused(run, tmp_path, kind):
    block = tarfile.TarInfo("run/metrics.jsonl")
    block.type, block.linkname = kind, "/etc/passwd"
    data = lzma.decompress(pack(run)[0])
    end = data.rindex(b"\0" * 1024) // 512 * 512
    while not any(data[end - 512 : end]):
        end -= 512
    forged = data[:end] + block.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    assert "is neither a file nor a folder" in refusal(tmp_path, lzma.compress(forged))


def test_a_link_in_the_place_of_a_file_is_refused(run, tmp_path):
    for name in ("metrics.jsonl", "eval/000020/summary.json"):
        link = member(f"run/{name}", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        assert "is not a file" in refusal(tmp_path, with_members(run, link))


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.realsize": "9999999999999", "GNU.sparse.major": "1"},
        {"size": "99999999999"},
        {"path": "x" * 100_000},
        {"path": "../../x"},
        {"path": "run/a\0b"},
    ],
)
def test_extended_headers_cannot_ask_for_more(run, tmp_path, headers):
    refusal(tmp_path, with_members(run, member("run/x", pax_headers=headers)))


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_on_the_way(tmp_path, monkeypatch):
    """The size in a header is enough; where headers say nothing, counting is."""
    large = tarfile.TarInfo("run/data")
    large.size = 2**30
    header = large.tobuf()
    assert "more than 512 MiB" in refusal(tmp_path, lzma.compress(header + bytes(10_000)))
    monkeypatch.setattr(archive, "FREE_BYTES", 2**20)
    zeros = [member(f"run/{i}", bytes(2**20)) for i in range(8)]
    read = []
    original = archive._Stream._next
    monkeypatch.setattr(
        archive._Stream, "_next", lambda self: read.append(len(chunk := original(self))) or chunk
    )
    assert "more than 250 times its size" in refusal(tmp_path, lzma.compress(tar_of(*zeros)))
    assert sum(read) < 3 * 2**20


def test_too_many_members_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 20)
    added = [member(f"run/{i}") for i in range(20)]
    assert "more than 20 files" in refusal(tmp_path, with_members(run, *added))


def test_an_archive_that_is_refused_has_written_nothing(run, tmp_path):
    file = tmp_path / "x.tar.xz"
    file.write_bytes(with_members(run, member("../late.json")))
    with pytest.raises(ReportError):
        archive.unpack(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_memory_for_decompression_is_bounded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMORY_BYTES", 2**20)
    assert "Memory usage limit" in refusal(tmp_path, pack(run)[0])


def test_other_kinds_of_files_are_told(run, tmp_path):
    packed, _ = pack(run)
    plain = lzma.decompress(packed)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive.json", "{}")
    for data in (
        *(gzip.compress(plain), bz2.compress(plain), lzma.compress(plain, lzma.FORMAT_ALONE)),
        *(plain, zipped.getvalue(), b"", b"hello", b"\xfd7zX"),
    ):
        assert "it is not a tar file in xz" in refusal(tmp_path, data)
    assert "is not an archive" in refusal(tmp_path, lzma.compress(b"hello"))
    assert "is not an archive" in refusal(
        tmp_path, lzma.compress(packed)
    )  # an archive in an archive


def test_a_cut_or_longer_or_changed_file_is_told(run, tmp_path):
    packed, _ = pack(run)
    for size in range(6, len(packed), len(packed) // 9):
        refusal(tmp_path, packed[:size])
    assert "something follows its end" in refusal(tmp_path, packed + b"x")
    assert "something follows its end" in refusal(tmp_path, packed + packed)
    inner = lzma.decompress(packed)
    assert "something follows its end" in refusal(tmp_path, lzma.compress(inner + b"x"))
    for place in range(20, len(packed), len(packed) // 9):
        changed = bytearray(packed)
        changed[place] ^= 0xFF
        refusal(tmp_path, bytes(changed))


@pytest.mark.parametrize(
    ("about", "fragment"),
    [
        (b"[]", "its archive.json is not that of an archive"),
        (b"{", "its archive.json is damaged"),
        (b"[" * 10_000, "its archive.json is damaged (nested too deeply)"),
        (b"\xff", "its archive.json is damaged"),
        (b" " * 20_000, "'archive.json' is too large"),
        ({"version": True}, "its version is True, not 1"),
        ({"version": "1"}, "its version is '1', not 1"),
        ({"directory": ["run"]}, "names no directory, but ['run']"),
        ({"directory": ".."}, "names no directory, but '..'"),
        ({"directory": "a/run"}, "names no directory, but 'a/run'"),
        ({"directory": "nothing"}, "'run' in it does not belong to 'nothing'"),
        ({"kind": 3}, "its archive.json is not that of an archive"),
    ],
)
def test_what_archive_json_must_say(run, tmp_path, about, fragment):
    entries = members(pack(run)[0])
    if isinstance(about, dict):
        about = json.dumps({**json.loads(entries[0][1]), **about}).encode()
    data = lzma.compress(tar_of(member("archive.json", about), *entries[1:]))
    assert fragment in refusal(tmp_path, data)
    assert "it holds no archive.json" in refusal(tmp_path, lzma.compress(tar_of(*entries[1:])))


def test_errors_name_the_archive_and_not_where_it_was_unpacked(run, tmp_path):
    places = []
    for info, data in members(pack(run)[0]):
        text = b'{"step": 10}' if info.name.endswith("000010/summary.json") else data
        places.append(member(info.name, text))
    file = tmp_path / "x.tar.xz"
    file.write_bytes(lzma.compress(tar_of(*places)))
    with pytest.raises(ReportError, match="is damaged: `new` is missing") as caught:
        run_compare(CompareConfig(runs=(str(file),), out=str(tmp_path / "report")))
    assert str(caught.value).startswith(f"{file}/run/eval/000010/summary.json is damaged")


def test_a_path_that_no_system_takes_is_told():
    for path in ("x" * 5000, "a\0b"):
        with pytest.raises(ReportError, match="cannot be opened") as caught, unpacked([path]):
            pass
        assert len(str(caught.value)) < 500
