"""The doctor names what is wrong and how to mend it."""

import subprocess

import pytest

from robo_razor.cli import doctor
from robo_razor.cli.doctor import Finding
from robo_razor.core.machine import cpu_quota


def test_python_must_be_3_12():
    assert doctor.check_python()[0].status == "ok"
    (finding,) = doctor.check_python((3, 11, 4))
    assert finding.status == "wrong"
    assert "3.12" in finding.remedy


def test_this_machines_packages_fit():
    assert [f for f in doctor.check_packages() if f.status != "ok"] == []


def test_missing_old_and_clashing_packages_are_named(monkeypatch):
    versions = {
        "torch": None,
        "numpy": "1.26.0",
        "opencv-python": "4",
        "opencv-python-headless": "4",
    }
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "999"))
    monkeypatch.setattr(
        doctor.importlib.metadata,
        "requires",
        lambda _: ["torch>=2.7", "numpy>=2", 'scipy>=99999; extra == "dev"'],
    )
    text = " ".join(f.value for f in doctor.check_packages() if f.status == "wrong")
    assert "torch>=2.7 is missing" in text
    assert "numpy 1.26.0 is not >=2" in text
    assert "both own cv2" in text
    assert "scipy" not in text


@pytest.mark.gl
def test_gl_says_what_is_really_used():
    rendering, environment = doctor.check_gl()
    assert rendering.status in ("ok", "note", "slow"), rendering
    assert "ms per 64 px frame" in rendering.value
    assert (environment.subject, environment.status) == ("environment", "ok")


@pytest.mark.parametrize(
    ("renderer", "milliseconds", "gpu", "status"),
    [
        ("NVIDIA H200/PCIe", 0.3, True, "ok"),
        ("llvmpipe (LLVM 15)", 2.0, False, "note"),
        ("llvmpipe (LLVM 15)", 2.0, True, "slow"),
        ("Mesa Intel", 30.0, False, "slow"),
    ],
)
def test_gl_is_judged(renderer, milliseconds, gpu, status):
    probe = {"renderer": renderer, "ms_per_frame": milliseconds, "ms_per_step": None}
    rendering, environment = doctor.judge_gl("egl", probe, gpu)
    assert (rendering.status, environment.status) == (status, "wrong")


def test_a_broken_gl_names_the_package(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="x\nImportError: no libEGL\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: failed)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    (finding,) = doctor.check_gl()
    assert (finding.status, "no libEGL" in finding.value) == ("wrong", True)
    assert "libegl1" in finding.remedy


def test_a_hanging_gl_is_given_up(monkeypatch):
    def hang(*a, **k):
        raise subprocess.TimeoutExpired("x", 60)

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert "hangs" in doctor.check_gl()[0].value


def test_a_cpu_quota_is_seen(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path) is None
    assert cpu_quota(tmp_path / "absent") is None
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(doctor, "cpu_count", lambda: 8)
    assert "--torch-threads 1" in doctor.check_cpu()[0].remedy


def test_little_memory_and_disk_are_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "available_bytes", lambda: 10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("U", (), {"free": 1e6}))
    statuses = {f.subject: f.status for f in doctor.check_memory()}
    assert statuses == {"memory": "slow", "shared memory": "wrong"}
    assert doctor.check_disk(tmp_path)[0].status == "wrong"


@pytest.mark.parametrize(("status", "code"), [("wrong", 1), ("slow", 0)])
def test_the_exit_status_tells_whether_something_is_wrong(status, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding(status, "GPU", "x", "mend it")],))
    assert doctor.run_doctor() == code
    assert "mend it" in capsys.readouterr().out
