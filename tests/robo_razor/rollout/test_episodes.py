from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_env import MAX_STEPS
from toy_policy import GREEN, NEW, RED, tiny_policy

from robo_razor.core.errors import EnvError, UnknownNameError
from robo_razor.core.settings.config import EnvConfig
from robo_razor.core.types import make_rows
from robo_razor.rollout.actors import (
    ExpertActor,
    GaussianNoise,
    NoisyActor,
    OpenLoopActor,
    PolicyActor,
    sampling_uniforms,
)
from robo_razor.rollout.environments import make_env, task_id
from robo_razor.rollout.episodes import run_actor, run_episodes
from robo_razor.rollout.groups import GroupDriver


def toy(num_envs=8, num_workers=2, task=RED, chunk_size=4, packages=("toy_env",), **kwargs):
    config = EnvConfig(
        num_envs=num_envs, num_workers=num_workers, image_size=16, env_packages=packages
    )
    return make_env(task, config, chunk_size=chunk_size, **kwargs)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


ROWS = [*make_rows(RED, range(7)), *make_rows(NEW, range(100, 106)), *make_rows(GREEN, [3])]


def same_record(first, second):
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.log_prob, second.log_prob)
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.reward, second.reward)
    assert torch.equal(first.final_value, second.final_value)
    assert np.array_equal(first.offsets, second.offsets)
    assert first.inputs.keys() == second.inputs.keys()
    assert all(torch.equal(first.inputs[key], second.inputs[key]) for key in first.inputs)


@pytest.mark.parametrize(
    ("num_envs", "num_workers", "last_first"), [(1, 1, False), (3, 3, True), (14, 2, True)]
)
def test_episodes_do_not_depend_on_envs_workers_or_order(policy, num_envs, num_workers, last_first):
    expected = run_episodes(toy(), policy, ROWS, "sample", True, sampling_seed=5)
    env = toy(num_envs, num_workers, last_in_first_out=last_first)
    batch = run_episodes(env, policy, ROWS, "sample", True, sampling_seed=5)
    assert np.array_equal(batch.success, expected.success)
    assert np.array_equal(batch.control_steps, expected.control_steps)
    assert batch.instructions == expected.instructions
    same_record(batch.record, expected.record)


def test_an_episode_does_not_depend_on_the_others(policy):
    all_rows = run_episodes(toy(), policy, ROWS, "sample", True, sampling_seed=5)
    alone = run_episodes(toy(), policy, ROWS[9:10], "sample", True, sampling_seed=5)
    first, last = all_rows.record.offsets[9], all_rows.record.offsets[10]
    assert torch.equal(alone.record.actions, all_rows.record.actions[first:last])


def test_sampling_seeds_and_samples_give_other_episodes(policy):
    def actions(rows, seed):
        return run_episodes(toy(), policy, rows, "sample", True, sampling_seed=seed).record.actions

    rows = make_rows(RED, [1, 1], samples=[0, 1])
    first = actions(rows[:1], 0)
    assert not torch.equal(first, actions(rows[:1], 1))
    assert not torch.equal(first, actions(rows[1:], 0))


def test_every_row_runs_once_and_ends_one_way(policy):
    seen = []
    batch = run_episodes(toy(3), policy, ROWS, progress=lambda *numbers: seen.append(numbers))
    assert batch.rows == tuple(ROWS)
    assert np.array_equal(batch.terminated, batch.success)
    assert np.array_equal(batch.truncated, ~batch.success)
    assert (batch.control_steps[batch.truncated] == MAX_STEPS).all()
    assert seen[-1] == (len(ROWS), len(ROWS), int(batch.success.sum()))


def test_the_final_value_is_that_of_the_true_final_observation(policy):
    batch = run_episodes(toy(), policy, make_rows(RED, range(12)), "sample", True)
    record = batch.record
    assert batch.truncated.any()
    assert batch.terminated.any()
    assert (record.final_value[torch.from_numpy(batch.terminated)] == 0).all()
    # One more decision's time limit makes the final observation an ordinary one.
    longer = run_episodes(
        toy(max_episode_steps=MAX_STEPS + 4), policy, make_rows(RED, range(12)), "sample", True
    )
    for e in np.flatnonzero(batch.truncated):
        last = longer.record.offsets[e] + batch.decisions[e]
        assert record.final_value[e] == longer.record.value[last]


def test_the_record_belongs_to_the_episodes(policy):
    batch = run_episodes(toy(), policy, ROWS, "sample", True)
    record = batch.record
    assert len(record) == batch.decisions.sum() == len(record.actions)
    assert np.array_equal(np.bincount(record.episode), batch.decisions)
    for e in range(len(batch)):
        rewards = record.reward[record.offsets[e] : record.offsets[e + 1]]
        assert float(rewards.sum()) == batch.episode_return[e]
    assert record.inputs["observation.images.front"].dtype == torch.uint8


def test_own_words_reach_the_policy(policy):
    rows = [*make_rows(RED, [0], instruction="press the button"), *make_rows(RED, [0])]
    batch = run_episodes(toy(), policy, rows, record="inputs")
    assert batch.instructions == ("press the button", "lift the red block")
    assert batch.record.log_prob is None
    tokens = batch.record.inputs["observation.language.tokens"]
    assert not torch.equal(tokens[0], tokens[batch.record.offsets[1]])


def test_a_serial_env_runs_chunks(policy):
    config = EnvConfig(num_envs=3, image_size=64, env_packages=("toy_env",))
    serial = make_env("serial/ReachRed-v0", config, chunk_size=4)
    big = tiny_policy(image_size=64)
    batch = run_episodes(serial, big, make_rows("serial/ReachRed-v0", range(6)), "greedy")
    vector = make_env(RED, config, chunk_size=4)
    expected = run_episodes(vector, big, make_rows(RED, range(6)), "greedy")
    assert np.array_equal(batch.success, expected.success)
    assert np.array_equal(batch.control_steps, expected.control_steps)


def test_watching_every_step_does_not_change_the_episodes(policy):
    rows = make_rows(RED, range(10))
    chunks = run_episodes(toy(), policy, rows, "sample", sampling_seed=2)
    actor = OpenLoopActor(PolicyActor(policy, "sample", sampling_seed=2), policy.chunk_size)
    steps = run_actor(toy(chunk_size=1), actor, rows)
    assert np.array_equal(steps.success, chunks.success)
    assert np.array_equal(steps.control_steps, chunks.control_steps)


def test_noise_disturbs_what_is_executed_but_not_the_label():
    labels, executed = [], []

    class Watcher:
        def on_start(self, *_):
            pass

        def on_step(self, outcome):
            labels.append(outcome.decision.label)
            executed.append(outcome.decision.actions)

    run_actor(
        toy(),
        NoisyActor(ExpertActor("a"), GaussianNoise(0.3)),
        make_rows(RED, range(4)),
        observer=Watcher(),
    )
    assert not np.allclose(np.concatenate(labels), np.concatenate(executed))
    assert np.abs(np.concatenate(executed)).max() <= 1.0


def test_a_vector_env_without_split_stepping_is_one_group(policy):
    env = toy()
    at_once = run_episodes(env, policy, ROWS, "sample", True)

    class Plain:
        """The same environment with `reset` and `step` only."""

        def __init__(self, inner):
            self.num_envs, self.metadata = inner.num_envs, inner.metadata
            self.single_observation_space = inner.single_observation_space
            self.reset, self.step, self._inner = inner.reset, inner.step, inner

        @property
        def tasks(self):
            return self._inner.tasks

        @property
        def instructions(self):
            return self._inner.instructions

    driver = GroupDriver(Plain(toy()))
    assert len(driver.groups) == 1
    same_record(run_episodes(Plain(toy()), policy, ROWS, "sample", True).record, at_once.record)


def test_uniforms_are_inside_the_unit_interval_and_evenly_spread():
    uniforms = sampling_uniforms(make_rows(RED, range(200)), np.zeros(200, int), (4, 5), 0)
    assert float(uniforms.min()) > 0.0
    assert float(uniforms.max()) < 1.0
    assert float(uniforms.mean()) == pytest.approx(0.5, abs=0.02)


def test_unknown_tasks_and_packages_are_named():
    with pytest.raises(UnknownNameError, match=r"toy/ReachRod-v0.*Did you mean 'toy/ReachRed-v0'"):
        toy(task="toy/ReachRod-v0")
    with pytest.raises(EnvError, match="no_such_package"):
        toy(packages=("no_such_package",))


def test_a_skills_name_stands_for_its_task():
    assert task_id("ReachRed", ("toy_env",)) == RED
    assert task_id("PressButton", ("gym_razor",)) == "gym_razor/PressButton-v0"
    for name in (RED, "ReachRod", "CartPole-v1", "lerobot:metaworld/push-v3"):
        assert task_id(name, ("toy_env",)) == name


OWN = {"env_packages": ("own_envs",)}


def test_a_vector_env_of_another_kind_is_not_asked_for_chunks():
    env = make_env("plain/OtherKind-v0", EnvConfig(num_envs=2, **OWN), chunk_size=2)
    assert env.num_envs == 2
    env.close()


def test_an_expert_style_that_there_is_not_is_refused():
    env = toy()
    env.expert_styles = ("a", "b")
    with pytest.raises(UnknownNameError, match=r"expert style 'z'.*a, b"):
        run_actor(env, ExpertActor("z"), make_rows(RED, range(2)))
    serial = make_env("serial/ReachRed-v0", EnvConfig(num_envs=1), chunk_size=1)
    with pytest.raises(EnvError, match="no scripted expert"):
        run_actor(serial, ExpertActor("a"), make_rows("serial/ReachRed-v0", range(1)))
