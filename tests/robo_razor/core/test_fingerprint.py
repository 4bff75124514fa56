"""What a result depends on, and which differences stand in the way of a comparison."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from toy_policy import tiny_policy

from robo_razor.core.fingerprint import (
    differences,
    fingerprint,
    git_state,
    policy_hash,
)
from robo_razor.core.settings.config import EnvConfig, EvaluateConfig
from robo_razor.policies.load import load_policy


class Drawn:
    gl_renderer = "llvmpipe (LLVM 15.0.6, 256 bits)"


@pytest.fixture(scope="module")
def full():
    return fingerprint(policy=tiny_policy(), env=Drawn(), config=EvaluateConfig())


def test_it_says_what_a_result_depends_on(full):
    assert full["packages"]["mujoco"]
    assert full["packages"]["torch"] == torch.__version__.split("+")[0]
    assert full["gl_renderer"] == Drawn.gl_renderer
    assert full["torch_threads"] == torch.get_num_threads()
    assert full["device"] == "cpu"
    assert len(full["policy_hash"]) == 64
    assert full["config"]["mode"] == "greedy"
    assert full["cpu_cores"] >= 1
    assert fingerprint()["policy_hash"] is None


def test_it_needs_no_torch():
    code = (
        "import sys\nfrom robo_razor.core.fingerprint import differences, fingerprint\n"
        "assert differences(fingerprint(), fingerprint(), harmless=True) == []\n"
        "assert fingerprint()['torch_threads'] is None\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def change(original, path, value):
    changed = copy.deepcopy(original)
    *parents, last = path
    target = changed
    for key in parents:
        target = target[key]
    target[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("packages", "mujoco"), "3.9.9", "version of mujoco: .* against 3.9.9"),
        (("packages", "robosuite"), "0.1", "version of robosuite"),
        (("gl_renderer",), "NVIDIA", "OpenGL renderer: llvmpipe .* against NVIDIA"),
        (("config", "mode"), "sample", "setting mode: greedy against sample"),
        (("config", "env", "max_episode_steps"), 10, "max_episode_steps: None against 10"),
    ],
)
def test_decisive_differences_are_named(full, path, value, text):
    import re

    other = change(full, path, value)
    (clause,) = differences(full, other)
    assert re.search(text, clause)
    assert differences(full, other)
    assert differences(other, full)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("cpu",), "another"),
        (("torch_threads",), 77),
        (("policy_hash",), "0" * 64),
        (("packages", "safetensors"), "0.0"),
        (("config", "env", "num_envs"), 1),
        (("git",), {"commit": "0" * 40, "dirty": True}),
        (("gl_backend",), "osmesa-or-so"),
    ],
)
def test_harmless_differences_are_told_on_request_only(full, path, value):
    full = change(full, ("gl_backend",), "egl")
    full = change(full, ("git",), {"commit": "1" * 40, "dirty": True})
    other = change(full, path, value)
    assert not differences(full, other)
    (clause,) = differences(full, other, harmless=True)
    assert path[-1].split("_")[0] in clause.lower() or "MUJOCO_GL" in clause


def test_what_is_not_told_does_not_count(full):
    assert not differences(full, {"packages": {}})
    assert not differences({}, {})
    assert not differences(full, change(full, ("gl_renderer",), None))
    builds = [change(full, ("packages", "torch"), f"2.7.1+{kind}") for kind in ("cpu", "cu126")]
    assert not differences(*builds)


def test_without_a_renderers_name_the_backend_decides():
    one, two = ({"gl_backend": name, "gl_renderer": None} for name in ("egl", "osmesa"))
    assert differences(one, two) == ["MUJOCO_GL: egl against osmesa"]


def test_a_policys_hash_is_that_of_its_numbers(tmp_path):
    policy = tiny_policy()
    before = policy_hash(policy)
    policy.save(tmp_path / "a")
    assert policy_hash(load_policy(tmp_path / "a")) == before == policy_hash(tiny_policy())
    assert policy_hash(tiny_policy(seed=1)) != before
    with torch.no_grad():
        next(iter(policy.module.parameters())).view(-1)[0] += 1e-6
    assert policy_hash(policy) != before


def test_git_state_of_a_checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    assert git_state(tmp_path) is None
    git("init")
    assert git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "untracked").write_text("2")
    assert git_state(tmp_path) == clean
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {**clean, "dirty": True}


def test_the_suites_environment_tells_its_renderer():
    from robo_razor.rollout.environments import make_env

    config = EnvConfig(num_envs=1, num_workers=1, image_size=16)
    env = make_env("gym_razor/PressButton-v0", config, chunk_size=1)
    env.reset(seed=0)
    assert fingerprint(env=env)["gl_renderer"]
    env.close()
