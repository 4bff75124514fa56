"""Check this machine: what is slow or wrong, and how to mend it.

OpenGL is tested in another process with a time limit: a broken driver may hang or crash.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from robo_razor.core.fingerprint import cpu_name
from robo_razor.core.machine import available_bytes, cpu_count, cpu_quota
from robo_razor.core.settings.config import MAIN_TASK, EnvConfig

logger = logging.getLogger(__name__)

Status = Literal["ok", "note", "slow", "wrong"]
COLOURS: dict[Status, str] = {"ok": "green", "note": "cyan", "slow": "yellow", "wrong": "red"}

GL_TIME_LIMIT_S = 60.0
SLOW_FRAME_MS = 8.0
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast")
LOW_DISK_GB = 2.0
LOW_MEMORY_GB = 4.0
LOW_SHARED_MB = 256.0


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    status: Status
    subject: str
    value: str
    remedy: str = ""


def run_doctor() -> int:
    """Print all findings; return 1 if something is wrong, else 0."""
    console = Console()
    table = Table(title="robo-razor doctor", title_justify="left")
    for column in ("", "check", "result", "what to do"):
        table.add_column(column, overflow="fold")
    findings: list[Finding] = []
    with console.status("checking"):
        for check in CHECKS:
            findings += check()
    for finding in findings:
        colour = COLOURS[finding.status]
        table.add_row(
            f"[{colour}]{finding.status}[/]", finding.subject, finding.value, finding.remedy
        )
    console.print(table)
    wrong = sum(finding.status == "wrong" for finding in findings)
    slow = sum(finding.status == "slow" for finding in findings)
    console.print(f"{wrong} wrong, {slow} slow.")
    return 1 if wrong else 0


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> list[Finding]:
    """Check the interpreter."""
    text = f"{'.'.join(map(str, version))} ({platform.system()} {platform.machine()})"
    if version[:2] != (3, 12):
        return [Finding("wrong", "Python", text, "Use Python 3.12: `make clean setup`.")]
    return [Finding("ok", "Python", text)]


def check_packages() -> list[Finding]:
    """Compare installed versions with robo-razor's requirements."""
    from packaging.requirements import Requirement

    findings: list[Finding] = []
    present: list[str] = []
    for line in importlib.metadata.requires("robo-razor") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if version is None:
            findings.append(Finding("wrong", "package", f"{wanted} is missing", "`make setup`"))
        elif not requirement.specifier.contains(version, prereleases=True):
            problem = f"{requirement.name} {version} is not {requirement.specifier}"
            findings.append(Finding("wrong", "package", problem, "`make clean setup`"))
        else:
            present.append(requirement.name)
    if _version("opencv-python") and _version("opencv-python-headless"):
        findings.append(
            Finding(
                "wrong",
                "package",
                "opencv-python and opencv-python-headless both own cv2",
                "`pip uninstall opencv-python`, then reinstall opencv-python-headless.",
            )
        )
    return [Finding("ok", "packages", f"{len(present)} as required"), *findings]


def check_gl() -> list[Finding]:
    """Render with the backend of the environments; report its real name and its speed."""
    code = "from robo_razor.cli.doctor import probe_gl; probe_gl()"
    environment = {**os.environ}
    if sys.platform.startswith("linux"):
        environment.setdefault("MUJOCO_GL", "egl")
    environment.setdefault("LP_NUM_THREADS", "0")  # as the workers of our environments do
    backend = environment.get("MUJOCO_GL", "default")
    try:
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=GL_TIME_LIMIT_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        remedy = "Set MUJOCO_GL=osmesa (Debian package libosmesa6), or mend the GPU driver."
        return [
            Finding("wrong", "OpenGL", f"{backend}: hangs over {GL_TIME_LIMIT_S:.0f} s", remedy)
        ]
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        return [Finding("wrong", "OpenGL", f"{backend}: {lines[-1][:200]}", _gl_remedy(backend))]
    return judge_gl(backend, json.loads(result.stdout.splitlines()[-1]), _has_nvidia())


def judge_gl(backend: str, probe: dict[str, Any], has_gpu: bool) -> list[Finding]:
    """Turn the measurements of `probe_gl` into findings."""
    findings = [_judge_renderer(backend, probe, has_gpu)]
    step = probe["ms_per_step"]
    if step is None:
        remedy = f"See why: `robo-razor rollout --task {MAIN_TASK} --debug`."
        return [*findings, Finding("wrong", "environment", f"{MAIN_TASK} does not run", remedy)]
    text = f"{step:.1f} ms per control step of {MAIN_TASK}, two cameras"
    return [*findings, Finding("ok", "environment", text)]


def _judge_renderer(backend: str, probe: dict[str, Any], has_gpu: bool) -> Finding:
    renderer, milliseconds = str(probe["renderer"]), float(probe["ms_per_frame"])
    text = f"{backend}: {renderer}, {milliseconds:.2f} ms per 64 px frame"
    software = any(name in renderer.lower() for name in SOFTWARE_RENDERERS)
    if software and has_gpu:
        remedy = "Rendering runs on the CPU beside a GPU: install the NVIDIA driver's libEGL."
        return Finding("slow", "OpenGL", text, remedy)
    if milliseconds > SLOW_FRAME_MS:
        return Finding("slow", "OpenGL", text, "Other processes may be using the cores.")
    if software:
        return Finding("note", "OpenGL", text, "Software rendering: fine at 64 px.")
    return Finding("ok", "OpenGL", text)


def probe_gl(frames: int = 50) -> None:
    """Print, as JSON, the renderer's name and the time of one frame of a small scene."""
    import mujoco

    bodies = "".join(
        f'<body pos="{0.1 * (i % 6)} {0.1 * (i // 6)} .1"><geom size=".04 .04 .04" type="box"/>'
        "</body>"
        for i in range(36)
    )
    # No shadows and no multisampling, as in our environments: they cost several times the rest.
    quality = '<visual><quality shadowsize="0" offsamples="0"/></visual>'
    world = f'<light pos="0 0 3" castshadow="false"/><geom type="plane" size="1 1 1"/>{bodies}'
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco>{quality}<worldbody>{world}</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, height=64, width=64)
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER)
    renderer.update_scene(data)
    renderer.render()
    began = time.perf_counter()
    for _ in range(frames):
        renderer.update_scene(data)
        renderer.render()
    milliseconds = 1000 * (time.perf_counter() - began) / frames
    renderer.close()
    text = name.decode() if isinstance(name, bytes) else str(name)
    measured = {"renderer": text, "ms_per_frame": milliseconds, "ms_per_step": _step_time()}
    sys.stdout.write(json.dumps(measured) + "\n")
    sys.stdout.flush()


def _step_time(steps: int = 20) -> float | None:
    """Return the milliseconds per control step of the main task with cameras; None: it fails."""
    import gymnasium as gym

    try:
        for name in EnvConfig().env_packages:
            importlib.import_module(name)
        env = gym.make(MAIN_TASK)
        env.reset(seed=0)
        action = 0 * env.action_space.sample()
        began = time.perf_counter()
        for _ in range(steps):
            env.step(action)
        milliseconds = 1000 * (time.perf_counter() - began) / steps
        env.close()
    except Exception:  # any error means "does not run"
        logger.debug("the main task does not run", exc_info=True)
        return None
    return milliseconds


def check_cpu() -> list[Finding]:
    """Check cores and thread settings."""
    cores, quota = cpu_count(), cpu_quota()
    text = f"{cpu_name()}, {cores} cores usable"
    findings = [Finding("ok", "CPU", text)]
    if quota is not None and quota < cores:
        text += f", but a quota of {quota:g}"
        remedy = (
            f"Set `--torch-threads {max(1, int(quota))} --env.num-workers {max(1, int(quota))}`."
        )
        findings = [Finding("slow", "CPU", text, remedy)]
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        findings.append(
            Finding("note", "CPU threads", f"OMP_NUM_THREADS={threads}", "It limits torch too.")
        )
    return findings


def check_gpu() -> list[Finding]:
    """Check which GPU torch can use."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        text = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, CUDA {torch.version.cuda}"
        return [Finding("ok", "GPU", text)]
    if _has_nvidia():
        remedy = "Update the NVIDIA driver, or install a torch for its CUDA version."
        return [Finding("slow", "GPU", "present, but torch cannot use it", remedy)]
    return [Finding("note", "GPU", "none", "The shipped policy is small enough for the CPU.")]


def check_memory() -> list[Finding]:
    """Check the free memory, and the shared memory for workers."""
    findings = []
    available = available_bytes()
    if available is not None:
        free = available / 1e9
        low = free < LOW_MEMORY_GB
        remedy = "Close programs, or use fewer environments (`--env.num-envs 16`)." if low else ""
        findings.append(
            Finding("slow" if low else "ok", "memory", f"{free:.1f} GB available", remedy)
        )
    if Path("/dev/shm").is_dir():
        megabytes = shutil.disk_usage("/dev/shm").free / 1e6
        low = megabytes < LOW_SHARED_MB
        remedy = "In Docker: `--shm-size=1g`." if low else ""
        text = f"{megabytes:.0f} MB free in /dev/shm"
        findings.append(Finding("wrong" if low else "ok", "shared memory", text, remedy))
    return findings


def check_disk(path: str | Path = ".") -> list[Finding]:
    """Check the room for runs, and the permission to write there."""
    free = shutil.disk_usage(path).free / 1e9
    text = f"{free:.1f} GB free in {Path(path).resolve()}"
    if not os.access(path, os.W_OK):
        return [
            Finding("wrong", "disk", f"{Path(path).resolve()} is read-only", "Change directory.")
        ]
    if free < LOW_DISK_GB:
        return [Finding("wrong", "disk", text, "Make room, or write elsewhere with `--out`.")]
    return [Finding("ok", "disk", text)]


def check_extras() -> list[Finding]:
    """Check the shipped weights and the video encoder."""
    findings = []
    spec = importlib.util.find_spec("lerobot_policy_razor")
    places = list(spec.submodule_search_locations or []) if spec else []
    weights = [p for p in places if (Path(p) / "weights/razor-base/model.safetensors").is_file()]
    if weights:
        findings.append(Finding("ok", "razor-base", "shipped weights are installed"))
    else:
        remedy = "Get the repository again, or make them with `robo-razor pretrain`."
        findings.append(Finding("wrong", "razor-base", "shipped weights are missing", remedy))
    try:
        import imageio_ffmpeg

        findings.append(Finding("ok", "video", f"ffmpeg {imageio_ffmpeg.get_ffmpeg_version()}"))
    except (ImportError, RuntimeError):
        findings.append(Finding("note", "video", "no ffmpeg", "Videos are written as GIF."))
    return findings


CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    check_python,
    check_packages,
    check_gl,
    check_cpu,
    check_gpu,
    check_memory,
    check_disk,
    check_extras,
)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gl_remedy(backend: str) -> str:
    if backend == "egl":
        return "`apt-get install libegl1 libgl1`, or `libosmesa6` and MUJOCO_GL=osmesa."
    if backend == "osmesa":
        return "`apt-get install libosmesa6`."
    return "Unset MUJOCO_GL, or set it to egl or osmesa."


def _has_nvidia() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()
