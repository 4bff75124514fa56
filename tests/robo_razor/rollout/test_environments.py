"""Names of packages and tasks, the setting of OpenGL, and workers of a script without a guard."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_env
from rich.console import Console
from toy_policy import RED, save_tiny_policy

from robo_razor.cli.rollout import run_rollout
from robo_razor.core.errors import ConfigError, EnvError, UnknownNameError
from robo_razor.core.settings.config import EnvConfig, RolloutConfig
from robo_razor.rollout.environments import (
    check_tasks,
    import_env_packages,
    make_env,
    resolve_tasks,
    worker_errors,
)

ROOT = Path(__file__).parents[3]
ENV = EnvConfig(num_envs=1, image_size=16, env_packages=("toy_env",))


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("broken_import", "raise ImportError('no simulator')", "ImportError: no simulator"),
        ("broken_syntax", "def f(:", "SyntaxError: invalid syntax"),
        ("broken_exit", "raise SystemExit('bye')", "SystemExit: bye"),
        ("broken_value", "int('x')", "ValueError: invalid literal"),
        ("broken_gl", "raise RuntimeError('MUJOCO_GL: x')", "No OpenGL context.* libegl1"),
    ],
)
def test_a_package_that_cannot_be_imported_says_why(tmp_path, monkeypatch, name, code, text):
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvError, match=rf"'{name}' in `env\.env_packages` cannot .*{text}"):
        import_env_packages([name])


@pytest.mark.parametrize("name", ["", ".x", "a b", "a..b", "../x"])
def test_a_name_that_no_package_can_have_is_refused(name):
    with pytest.raises(EnvError, match="which is not the name of a package"):
        import_env_packages([name])


def test_an_unknown_task_says_that_a_package_may_be_missing():
    text = r"Unknown task 'nowhere/Lift-v0'.*`--env\.env-packages gym_razor nowhere`"
    with pytest.raises(UnknownNameError, match=text):
        check_tasks(["nowhere/Lift-v0"])
    with pytest.raises(UnknownNameError, match=text):
        resolve_tasks("nowhere/Lift-v0", ("toy_env",))
    with pytest.raises(UnknownNameError, match="Did you mean 'toy/ReachRed-v0'") as caught:
        check_tasks(["toy/ReechRed-v0"])
    assert "env-packages" not in str(caught.value)


def test_a_misspelt_way_to_render_lists_those_that_there_are(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "elg")
    text = r"No OpenGL context.* 'elg'\. Did you mean 'egl'\?.*Allowed: egl, osmesa, glfw.*libegl1"
    with pytest.raises(EnvError, match=text):
        make_env(RED, ENV, chunk_size=1)


def test_an_opengl_library_that_is_missing_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with (
        pytest.raises(EnvError, match=r"No OpenGL context.*'osmesa'.*libosmesa6") as caught,
        worker_errors("X cannot be made"),
    ):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")
    assert str(caught.value).startswith("X cannot be made: AttributeError: ")
    with pytest.raises(EnvError) as caught, worker_errors():
        raise RuntimeError("a joint is missing")
    assert "OpenGL" not in str(caught.value)


@pytest.mark.parametrize(
    ("video", "text"),
    [("/proc/nope/v.mp4", "cannot be written"), ("v.avi", "not a video file")],
)
def test_a_video_that_cannot_be_written_is_refused_before_the_policy_is_loaded(video, text):
    config = RolloutConfig(policy="nobody", task=RED, episodes=1, video=video, env=ENV)
    with pytest.raises(ConfigError, match=text):
        run_rollout(config, Console(file=io.StringIO()))


def test_an_environment_that_cannot_draw_is_refused_before_its_first_step(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(toy_env.ToyVectorEnv, "render", lambda self, **_: None)
    monkeypatch.setattr(toy_env.ToyVectorEnv, "step_async", lambda self, *_: steps.append(1))
    base = save_tiny_policy(tmp_path / "base")
    config = RolloutConfig(
        policy=base, task=RED, episodes=1, video=str(tmp_path / "v.gif"), env=ENV
    )
    with pytest.raises(EnvError, match="cannot be filmed"):
        run_rollout(config, Console(file=io.StringIO()))
    assert not steps
    assert not (tmp_path / "v.gif").exists()


SCRIPT = """
import numpy as np
from counter import toy_factory
from gym_razor.vector.any_env import ChunkedVectorEnv
env = ChunkedVectorEnv([toy_factory()] * 2, num_workers=2)
env.reset(seed=0)
print("reset")
env.close()
"""


def run(*arguments, **given):
    path = os.pathsep.join([str(ROOT / "envs"), str(ROOT / "tests" / "toys")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        **given,
    )


def test_a_script_needs_no_main_guard(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    done = run(str(file))
    assert (done.returncode, done.stdout) == (0, "reset\n"), done.stderr


def test_a_program_from_standard_input_has_workers_too():
    done = run(input=SCRIPT)
    assert (done.returncode, done.stdout) == (0, "reset\n"), done.stderr


def test_workers_know_what_the_main_module_defines(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(
        SCRIPT.replace("[toy_factory()]", "[mine]").replace(
            "env =", "def mine():\n    return toy_factory()()\n\nenv ="
        )
    )
    done = run(str(file))
    assert (done.returncode, done.stdout) == (0, "reset\n"), done.stderr
