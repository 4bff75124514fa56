"""Environments of LeRobot's as tasks, on types that the tests register; no simulator is needed."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import toy_lerobot_envs
from rich.console import Console
from toy_policy import RED, save_tiny_policy, tiny_policy
from toy_runs import finetune, own_warnings
from toy_sim import HEIGHT, WIDTH, Line

from robo_razor.cli.evaluate import run_evaluate
from robo_razor.cli.listing import lerobot_table
from robo_razor.cli.rollout import run_rollout
from robo_razor.core.errors import ConfigError, EnvError, PolicyEnvMismatchError, UnknownNameError
from robo_razor.core.settings.config import (
    EnvConfig,
    EvaluateConfig,
    FinetuneConfig,
    RolloutConfig,
    TrackingConfig,
)
from robo_razor.core.types import make_rows
from robo_razor.rollout.environments import (
    check_tasks,
    make_env,
    named_tasks,
    resolve_tasks,
    time_limit,
)
from robo_razor.rollout.episodes import run_episodes
from robo_razor.rollout.lerobot import LeRobotTask, lerobot_tasks, simulated
from robo_razor.training.methods.ppo import PPO
from robo_razor.training.preflight import check_settings as validate

assert toy_lerobot_envs
LEFT, RIGHT = "lerobot:toyline/Left-v0", "lerobot:toyline/Right-v0"
SUITE = ("lerobot:toysuite/both:0", "lerobot:toysuite/both:1")
TOY = {"env_packages": ("toy_env", "toy_lerobot_envs", "gym_razor")}
LINE_SIZES = {"image_size": 16, "action_dim": 3, "camera_names": ("observation.image",)}


def config(**settings):
    return EnvConfig(**({"num_envs": 3, "num_workers": 2} | TOY | settings))


@pytest.fixture
def make():
    """Return `make_env`; what it made is closed at the end."""
    made = []

    def call(task, *, chunk_size=4, tasks=(), image_shape=None, **settings):
        env = make_env(
            task, config(**settings), chunk_size=chunk_size, tasks=tasks, image_shape=image_shape
        )
        made.append(env)
        return env

    yield call
    for env in made:
        env.close()


def push(env, value):
    """Return the same chunk for every sub-environment."""
    chunk = np.zeros((env.num_envs, env.chunk_size, 3), np.float32)
    chunk[..., 0] = value
    return chunk


def test_names_are_checked_and_suites_mean_all_their_tasks():
    check_tasks([LEFT, SUITE[1], "lerobot:toysuite/right"])
    assert time_limit(LEFT) == 9
    assert time_limit(SUITE[1]) == 12
    assert resolve_tasks("lerobot:toysuite/both", ()) == list(SUITE)
    assert named_tasks(f"{RED},{LEFT},lerobot:toysuite/both:1", TOY["env_packages"]) == {
        "ReachRed": RED,
        "Left": LEFT,
        "both:1": SUITE[1],
    }
    with pytest.raises(EnvError, match=r"stands for 2 tasks.*both:0, lerobot:toysuite/both:1"):
        check_tasks(["lerobot:toysuite/both"])


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("lerobot:toylime/Left-v0", UnknownNameError, "Did you mean 'toyline'"),
        ("lerobot:toyline/Lift-v0", UnknownNameError, "Did you mean 'Left-v0'"),
        ("lerobot:toysuite/both:2", UnknownNameError, r"Allowed: .*both:0, .*both:1"),
        ("lerobot:toysuite/middle", UnknownNameError, "lerobot:toysuite/middle"),
        ("lerobot:toyline", EnvError, "lerobot:TYPE/TASK"),
        ("lerobot:toymissing/Left-v0", EnvError, "toy_sim_that_is_not_installed"),
        ("lerobot:isaaclab_arena/x", EnvError, "code from the hub"),
        ("lerobot:toyscaled/Left-v0", EnvError, r"changes actions before .* \(ArmState"),
    ],
)
def test_wrong_names_are_told_with_what_is_allowed(name, error, text):
    with pytest.raises(error, match=text):
        check_tasks([name])


def test_two_names_of_one_task_are_known_as_such():
    check_tasks([LEFT, RIGHT, "lerobot:toycopy/Left-v0", *SUITE, "lerobot:toysuite/left"])
    check_tasks(["lerobot:razor/LiftCube"])
    assert simulated("lerobot:toysuite/left") == simulated(SUITE[0]) != simulated(SUITE[1])
    assert simulated(LEFT) == simulated("lerobot:toycopy/Left-v0") != simulated(RIGHT)
    assert simulated("lerobot:razor/LiftCube") == simulated("gym_razor/LiftCube-v0")


def test_makers_of_one_task_are_told_from_those_of_another():
    """As LeRobot makes Meta-World's: functions that hold the task as a default argument."""

    def suite(*names, **given):
        return [LeRobotTask(lambda n=name: Line(n, **given), None, None) for name in names]

    one, other = suite("left", "right", cameras=2)
    (again,) = suite("left", cameras=2)
    assert again.make is not one.make
    assert again.simulated == one.simulated != other.simulated


def test_meta_worlds_tasks_are_the_same_with_and_without_its_name(monkeypatch):
    """LeRobot's own factory, with a stand-in for the simulator that it imports."""
    simulator = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "metaworld", simulator)
    monkeypatch.setitem(sys.modules, "metaworld.policies", simulator.policies)
    monkeypatch.setitem(sys.modules, "lerobot.envs.metaworld", None)  # imported anew, then gone
    del sys.modules["lerobot.envs.metaworld"]

    def identity(name):
        (task,) = lerobot_tasks.__wrapped__(f"lerobot:metaworld/{name}").values()
        return task.simulated

    assert identity("push-v3") == identity("metaworld-push-v3") == identity("hard:4")
    assert identity("push-v3") != identity("metaworld-reach-v3")


@pytest.mark.parametrize(
    ("task", "prior"),
    [
        ("lerobot:toysuite/left", SUITE[0]),
        ("lerobot:razor/LiftCube", f"PressButton,{RED},LiftCube"),
        ("gym_razor/LiftCube-v0", "lerobot:razor/LiftCube"),
        ("gym_razor/LiftCube-v0", "PressButton,LiftCube"),
    ],
)
def test_the_new_task_is_no_prior_skill_by_whatever_name(task, prior):
    settings = FinetuneConfig(task=task, prior_tasks=prior, env=config())
    with pytest.raises(ConfigError, match=f"which is the new task '{task}'"):
        validate(settings)


def test_the_new_task_is_left_out_of_a_group_of_prior_skills(caplog):
    settings = FinetuneConfig(
        task="lerobot:toysuite/left", prior_tasks="lerobot:toysuite/both", env=config()
    )
    assert validate(settings) == {"both:1": SUITE[1]}
    assert f"{SUITE[0]} is left out of the prior skills" in caplog.text


@pytest.mark.parametrize("group", ["prior", "all"])
def test_a_group_of_prior_skills_may_hold_the_new_task_itself(group, caplog):
    env = EnvConfig(env_packages=("gym_razor",))
    prior = validate(FinetuneConfig(task="gym_razor/LiftCube-v0", prior_tasks=group, env=env))
    assert "PressButton" in prior
    assert "LiftCube" not in prior
    assert "left out" not in caplog.text  # not worth a word: it has the very same name


def test_the_types_are_listed():
    console = quiet()
    console.print(lerobot_table())
    listed = console.file.getvalue()
    assert "lerobot:toyline/Left-v0" in listed
    assert "lerobot:razor/PlaceCanInBin" in listed


def test_libero_says_why_it_is_not_here():
    pytest.importorskip("lerobot")
    with pytest.raises(EnvError, match=r"robosuite 1\.4\.0.*lerobot-eval"):
        check_tasks(["lerobot:libero/libero_10"])


def test_lerobots_settings_reach_its_config(make):
    env = make(LEFT, num_envs=1, lerobot="{cameras: 2}")
    assert set(env.single_observation_space["pixels"].spaces) == {"view0", "view1"}
    with pytest.raises(ConfigError, match=r"'camera'.*Did you mean 'cameras'"):
        make(LEFT, lerobot="{camera: 2}")
    with pytest.raises(ConfigError, match=r"`env\.lerobot` = 'two' is not a mapping"):
        config(lerobot="two")


def test_a_chunk_an_instruction_and_the_true_final_observation(make):
    env = make(LEFT, max_episode_steps=6, image_shape=(12, 16))
    assert env.single_observation_space["pixels"]["observation.image"].shape == (12, 16, 3)
    observation, infos = env.reset(seed=[5, 6, 7], options={"instructions": [None, "hurry", None]})
    assert env.instructions == ["go to the left", "hurry", "go to the left"]
    assert env.tasks == [LEFT] * 3
    assert observation["agent_pos"].dtype == np.float32
    assert len(set(infos["start_state_hash"])) == 3
    start = observation["agent_pos"][:, 0].copy()
    _, _, terminated, truncated, infos = env.step(push(env, 0.0))
    assert not terminated.any()
    assert not truncated.any()
    assert infos["elapsed_steps"].tolist() == [4, 4, 4]
    observation, rewards, terminated, truncated, infos = env.step(push(env, 0.0))
    assert truncated.all()  # in the middle of the chunk
    assert not terminated.any()
    assert rewards.tolist() == [0, 0, 0]
    assert infos["elapsed_steps"].tolist() == [6, 6, 6]
    np.testing.assert_allclose(observation["agent_pos"][:, 0], start, atol=0.05)

    mask = np.array([True, False, False])
    env.reset(seed=[5, None, None], options={"reset_mask": mask})
    observation, rewards, terminated, truncated, infos = env.step(push(env, -1.0))
    assert terminated.tolist() == [True, False, False]  # the others wait for their reset
    assert truncated.tolist() == [False, True, True]
    assert rewards.tolist() == [1, 0, 0]
    assert infos["is_success"].tolist() == [True, False, False]
    # The environment itself has begun anew by then, at another place.
    assert abs(observation["agent_pos"][0, 0] + 2.0) < 0.6


def test_shaped_rewards_are_the_environments_own(make):
    env = make(LEFT, num_envs=1, chunk_size=1, reward_type="shaped")
    observation, _ = env.reset(seed=[3])
    _, rewards, *_ = env.step(push(env, 0.0))
    assert rewards[0] == pytest.approx(-abs(observation["agent_pos"][0, 0]), abs=0.05)


def outcome(env, rows):
    """Return what tells an episode: its start, what it came to on the way, and its length."""
    batch = run_episodes(env, tiny_policy(**LINE_SIZES, state=2), rows, "sample", sampling_seed=3)
    return batch.start_states, batch.episode_return.tolist(), batch.control_steps.tolist()


def test_episodes_depend_on_their_seeds_only(make):
    rows = make_rows(LEFT, range(7))
    same = {"image_shape": (16, 16), "reward_type": "shaped"}
    one = outcome(make(LEFT, num_envs=3, **same), rows)
    other = outcome(make(LEFT, num_envs=5, num_workers=1, **same), rows)
    assert one == other
    assert len(set(one[0])) == 7
    assert len(set(one[1])) == 7, "all alike would show nothing"


def test_the_callers_own_generators_are_left_alone():
    from gym_razor.adapters.contract import make_contract_vector_env

    env = make_contract_vector_env({"a": Line}, 1)
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    env.reset(seed=1)
    env.step(np.zeros((1, 3), np.float32))
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002


@pytest.mark.parametrize(
    ("name", "text"),
    [("Fixed", "whatever the seed"), ("Drifting", "starts differently each time")],
)
def test_an_environment_that_takes_no_seed_is_told_of(make, caplog, name, text):
    with caplog.at_level(logging.WARNING):
        make(f"lerobot:toyline/{name}-v0", num_envs=1)
    assert text in caplog.text
    caplog.clear()
    make(LEFT, num_envs=1)
    assert not own_warnings(caplog)


@pytest.mark.parametrize("shape", [None, (12, 16)])
def test_fast_images_are_without_shadows_at_any_size(shape):
    from types import SimpleNamespace

    from gym_razor.adapters.contract import ContractEnv

    class Simulated(Line):
        def __init__(self):
            super().__init__()
            quality = SimpleNamespace(offsamples=4, shadowsize=4096)
            model = SimpleNamespace(vis=SimpleNamespace(quality=quality))
            renderer = SimpleNamespace(height=HEIGHT, width=WIDTH)
            self._env = SimpleNamespace(mujoco_renderer=renderer, model=model)

    for fast in (False, True):
        env = ContractEnv({"a": Simulated}, image_shape=shape, fast_images=fast)
        env.reset(seed=0)
        drawn = env._inner()._env
        assert env.renders_fast is fast
        assert vars(drawn.model.vis.quality) == (
            {"offsamples": 0, "shadowsize": 0} if fast else {"offsamples": 4, "shadowsize": 4096}
        )
        size = (drawn.mujoco_renderer.height, drawn.mujoco_renderer.width)
        assert size == (shape if fast and shape else (HEIGHT, WIDTH))


def test_fast_images_of_an_environment_that_has_none_are_warned_of(make, caplog):
    make(LEFT, num_envs=1, fast_images=True)
    assert f"`env.fast_images` has no effect on {LEFT}" in caplog.text


def test_workers_import_neither_lerobot_nor_torch(make):
    for task in (LEFT, "lerobot:toysuite/left"):
        env = make(task, num_envs=2)
        env.reset(seed=[0, 1])
        inner = env if task == LEFT else env._env
        assert inner.call("loaded") == ([], [])


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux")
def test_workers_of_our_own_suite_do_not_load_torch_either(make):
    env = make("gym_razor/PressButton-v0", num_envs=1, num_workers=1)
    env.reset(seed=[0])
    (worker,) = env.unwrapped._processes
    loaded = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "libmujoco" in loaded
    assert "libtorch" in Path("/proc/self/maps").read_text()
    assert "libtorch" not in loaded  # nor LeRobot, which cannot be imported without it


def test_our_own_suite_is_the_same_through_lerobot(make):
    """Its environment type `razor` is what LeRobot's scripts use."""
    settings = {"num_envs": 1, "num_workers": 1}
    direct = make("gym_razor/PressButton-v0", **settings)
    through_lerobot = make("lerobot:razor/PressButton", **settings)
    (first, _), (second, _) = direct.reset(seed=[3]), through_lerobot.reset(seed=[3])
    np.testing.assert_array_equal(first["agent_pos"], second["agent_pos"])
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(first["pixels"][camera], second["pixels"][camera])
    assert direct.unwrapped.instructions == through_lerobot.instructions
    chunk = np.full((1, 4, 5), 0.5, np.float32)
    np.testing.assert_array_equal(
        direct.step(chunk)[0]["agent_pos"], through_lerobot.step(chunk)[0]["agent_pos"]
    )
    assert time_limit("lerobot:razor/PressButton") == time_limit("gym_razor/PressButton-v0")


def test_a_suite_switches_tasks_and_goes_through_lerobots_pipeline(make):
    env = make(SUITE[0], tasks=SUITE, num_envs=2)
    assert env.single_observation_space["agent_pos"].shape == (4,)
    options = {"tasks": [SUITE[1], None]}
    observation, _ = env.reset(seed=[4, 4], options=options)
    assert env.tasks == [SUITE[1], SUITE[0]]
    assert env.instructions == ["go to the right", "go to the left"]
    assert observation["agent_pos"][:, [1, 3]].tolist() == [[2, 2], [-2, -2]]
    assert observation["pixels"]["view1"].dtype == np.uint8
    np.testing.assert_array_equal(  # turned over by the pipeline, so rolled the other way
        observation["pixels"]["view1"], np.roll(observation["pixels"]["view0"], -1, 1)
    )
    env.step_async(push(env, 0.0)[:1], np.arange(1))
    env_ids, after, *_ = env.step_wait()
    assert env_ids.tolist() == [0]
    assert after["agent_pos"].shape == (1, 4)


def test_tasks_of_two_kinds_run_side_by_side(make):
    tasks = (LEFT, "lerobot:toycopy/Right-v0", RIGHT)
    same = {"image_shape": (16, 16), "reward_type": "shaped"}
    env = make(LEFT, tasks=tasks, num_envs=4, **same)
    rows = [row for task in tasks for row in make_rows(task, range(3))]
    mixed = outcome(env, rows)
    alone = []
    for task in tasks:
        apart = make(task, num_envs=2, **same)
        alone.append(outcome(apart, make_rows(task, range(3))))
    assert list(mixed[0]) == [state for a in alone for state in a[0]]
    assert mixed[1] == [total for a in alone for total in a[1]]
    assert env.render(env_ids=np.array([0, 3]), size=32).shape == (2, 32, 32, 3)
    with pytest.raises(EnvError, match=r"cannot be in one run.*action 3.*action 5"):
        make(LEFT, tasks=(RED,))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("base"), state=2, **LINE_SIZES)


def quiet():
    return Console(file=io.StringIO(), width=200)


def test_evaluate_and_rollout_take_them(base, tmp_path):
    skills = f"{LEFT},{RIGHT}"
    evaluation = run_evaluate(
        EvaluateConfig(
            policy=base, skills=skills, episodes=4, env=config(), json=str(tmp_path / "x.json")
        ),
        quiet(),
    )
    assert set(evaluation) == {"Left", "Right"}
    assert all(result.n == 4 for result in evaluation.values())
    video = tmp_path / "v.gif"
    run_rollout(
        RolloutConfig(policy=base, task=LEFT, episodes=2, video=str(video), env=config()), quiet()
    )
    assert video.stat().st_size > 1000


def test_a_policy_that_does_not_fit_sees_both_sides(base):
    settings = EvaluateConfig(
        policy=base, skills=LEFT, episodes=1, env=config(lerobot="{cameras: 2}")
    )
    with pytest.raises(PolicyEnvMismatchError) as caught:
        run_evaluate(settings, quiet())
    wants, _, has = str(caught.value).partition("the environment has")
    assert "observation.image 16x16 px, observation.state 2, action 3" in wants
    assert "observation.images.view0 16x16 px, observation.images.view1 16x16 px" in has
    assert "--rename '{observation.images.view0: observation.image}'" in has
    renamed = EvaluateConfig(
        policy=base,
        skills=LEFT,
        episodes=1,
        env=config(lerobot="{cameras: 2}"),
        rename="{observation.images.view1: observation.image}",
    )
    assert run_evaluate(renamed, quiet())["Left"].n == 1


def test_finetune_learns_one_and_tracks_the_other(base, tmp_path):
    settings = FinetuneConfig(
        policy=base,
        task=LEFT,
        prior_tasks=f"{RIGHT},lerobot:toycopy/Right-v0",
        out=str(tmp_path / "run"),
        torch_threads=1,
        env=config(reward_type="shaped"),
        method=PPO(num_updates=1, episodes_per_update=4, value_warmup_updates=0, minibatch_size=16),
        tracking=TrackingConfig(
            episodes_new=2,
            episodes_new_sampled=2,
            episodes_prior=2,
            final_episodes_new=2,
            kl_states=4,
        ),
    )
    result = finetune(settings, quiet())
    assert result.step == 1
    assert set(result.summary["prior"]) == {"Right", "lerobot:toycopy/Right-v0"}
    assert result.summary["kl_base_tuned"]["new_base_visited"] > 0
    rows = [json.loads(line) for line in (result.run / "eval/000001/episodes.jsonl").open()]
    assert {(row["skill"], row["task"], row["role"]) for row in rows} == {
        ("Left", LEFT, "new"),
        ("Right", RIGHT, "prior"),  # as the summary names them
        ("lerobot:toycopy/Right-v0", "lerobot:toycopy/Right-v0", "prior"),
    }
    assert all(row["start_state"] for row in rows)
