from __future__ import annotations

import contextlib
import dataclasses
import itertools
import types

import numpy as np
import pytest
import tiny_vla
import torch
from toy_policy import NEW, save_tiny_policy, tiny_policy

from robo_razor.core.errors import ConfigError, DemonstrationError, UnknownNameError
from robo_razor.core.ranks import ALONE, Ranks
from robo_razor.core.settings.config import EnvConfig, FinetuneConfig
from robo_razor.core.types import make_rows
from robo_razor.policies.families import family_of
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy
from robo_razor.rollout.actors import ExpertActor
from robo_razor.rollout.demonstrations import collect_demonstrations, demonstrations_for
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.episodes import run_episodes
from robo_razor.training.imitation import rate_factor
from robo_razor.training.learner import Context
from robo_razor.training.methods.bc import BC, demonstration_source
from robo_razor.training.windows import WindowSampler, chunk_windows

ENV = EnvConfig(num_envs=16, image_size=16, env_packages=("toy_env",))


@pytest.fixture(scope="module")
def demonstrations():
    return collect_demonstrations(make_env(NEW, ENV, chunk_size=1), ExpertActor("a"), NEW, 150)


def make_bc(demonstrations, ranks=ALONE, **settings):
    policy = tiny_policy()
    defaults = {"epochs": 15, "batch_size": 64, "learning_rate": 4e-3, "warmup_steps": 5}
    config = FinetuneConfig(task=NEW, method=BC(**(defaults | settings)))
    method = learner(config, policy, demonstrations, ranks)
    method.prepare()
    return method, policy


def learner(config, policy, demonstrations, ranks=ALONE):
    return config.method.learner(
        Context(
            config=config,
            policy=policy,
            base=policy.frozen_copy(),
            rollout=lambda *_, **__: None,
            demonstrations=lambda: demonstrations,
            ranks=ranks,
        )
    )


def test_windows_repeat_the_last_action_of_their_episode_as_padding():
    windows, is_pad = chunk_windows(np.array([0, 3, 5]), 3)
    assert windows.tolist() == [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]]
    assert is_pad.sum(1).tolist() == [0, 1, 2, 1, 2]


def test_a_batch_holds_the_actions_that_followed(demonstrations):
    policy = tiny_policy()
    sampler = WindowSampler(demonstrations, policy)
    last = int(demonstrations.offsets[1]) - 1
    batch = sampler.batch(np.array([0, last]))
    np.testing.assert_array_equal(batch["action"][0], demonstrations.actions[:4])
    assert batch["action_is_pad"].tolist() == [[False] * 4, [False, True, True, True]]
    images = batch["observation.images.front"]
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images[1], demonstrations.images["front"][last])


def test_padding_has_no_part_in_razors_loss(demonstrations):
    policy = tiny_policy()
    sampler = WindowSampler(demonstrations, policy)
    batch = sampler.batch(np.array([int(demonstrations.offsets[1]) - 1]))
    loss, _ = policy.bc_loss(batch)
    other = dict(batch, action=torch.where(batch["action_is_pad"][..., None], 0.7, batch["action"]))
    assert torch.equal(policy.bc_loss(other)[0], loss)


def test_cloning_learns_the_task(demonstrations):
    method, policy = make_bc(demonstrations)
    losses = [method.update(k)["train/loss"] for k in range(1, method.num_updates + 1)]
    assert losses[-1] < 0.5 * losses[0]
    rows = make_rows(NEW, range(1_000_000, 1_000_050))
    batch = run_episodes(make_env(NEW, ENV, chunk_size=4), policy, rows)
    assert batch.success_rate > 0.8


def test_more_ranks_than_rows_are_refused(demonstrations):
    with pytest.raises(ConfigError, match=r"gives 3 decisions per gradient step, which 4 ranks"):
        make_bc(demonstrations, Ranks(0, 4), batch_size=3)


class Together(Ranks):
    """One of several ranks, without the others: keeps its part of the gradient."""

    def sum_gradients(self, parameters):
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        self.__dict__["gradient"] = torch.cat(gradients)  # frozen otherwise

    def totals(self, values, maxima=()):
        return dict(values)


@contextlib.contextmanager
def loaders(kind, directory):
    """Yield a function that returns equal policies which draw nothing in training."""
    if kind == "razor":
        yield lambda: tiny_policy(image_shift_px=0, state_noise=0.0)
        return
    if kind == "act":
        folder = tiny_vla.save_tiny_other(directory, kind, use_vae=False, dropout=0.0)
        yield lambda: load_policy(folder)
        return

    def still():
        policy = load_policy(folder)
        policy.module.model.sample_noise = lambda shape, device: torch.full(shape, 0.3)
        policy.module.model.sample_time = lambda count, device: torch.full((count,), 0.4)
        return policy

    with tiny_vla.saved(kind, directory) as folder:
        yield still


@pytest.mark.parametrize("kind", ["razor", "act", "smolvla", "pi0"])
def test_the_parts_of_several_ranks_make_the_gradient_of_one(kind, demonstrations, tmp_path):
    """Whatever the policy's loss does with padding, and however unevenly the ranks have it."""
    with loaders(kind, tmp_path / "policy") as load:

        def step(rank, size):
            config = FinetuneConfig(task=NEW, method=BC(batch_size=9, max_grad_norm=1e9))
            ranks = Together(rank, size)
            policy = load()
            method = learner(config, policy, demonstrations, ranks)
            method.prepare()

            def padded(step, rank):
                return method.sampler.is_pad[method._rows(step)[Together(rank, 2).share]].mean()

            uneven = next(k for k in range(99) if abs(padded(k, 0) - padded(k, 1)) > 0.2)
            return method._gradient_step(uneven)["loss"], ranks.gradient

        (loss, full_gradient), *parts = (step(0, 1), step(0, 2), step(1, 2))
        assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-5)
        together = parts[0][1] + parts[1][1]
        assert (together - full_gradient).norm() < 1e-4 * full_gradient.norm()


def test_what_a_loss_is_a_mean_of():
    is_pad = np.array([[False, False, True], [False, True, True]])

    def of(kind, **settings):
        policy = Policy.__new__(Policy)
        policy.family = family_of(kind)
        policy.module = types.SimpleNamespace(config=types.SimpleNamespace(**settings))
        return policy.loss_weight(is_pad)

    assert [of(kind) for kind in ("act", "smolvla")] == [3, 3]
    assert [of(kind) for kind in ("pi0", "pi05", "razor", "another")] == [2, 2, 2, 2]
    assert of("diffusion", do_mask_loss_for_padding=False) == 2
    assert of("diffusion", do_mask_loss_for_padding=True) == 3


def test_every_epoch_sees_every_window_once(demonstrations):
    method, _ = make_bc(demonstrations, batch_size=50)
    rows = [method._rows(step) for step in range(method.steps_per_epoch)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(method.sampler)))
    again = np.concatenate([method._rows(method.steps_per_epoch + k) for k in range(2)])
    assert not np.array_equal(again, np.concatenate(rows[:2]))


def test_the_value_head_stays_as_it_was(demonstrations):
    method, policy = make_bc(demonstrations, weight_decay=0.1)
    before = [p.clone() for p in policy.value_parameters()]
    method.update(1)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.value_parameters(), strict=True))


def test_the_schedule_warms_up_and_comes_down():
    cosine = BC(warmup_steps=10, schedule="cosine")
    factors = [rate_factor(cosine, step, 110) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[-1] < 0.001
    constant = BC(warmup_steps=0, schedule="constant")
    assert rate_factor(constant, 0, 10) == rate_factor(constant, 9, 10) == 1.0


def test_no_demonstrations_is_an_error_before_anything_starts(tmp_path):
    config = FinetuneConfig(method=BC(demonstrations=str(tmp_path / "none")))
    with pytest.raises(DemonstrationError, match=r"robo-razor collect"):
        config.method.validate(config)


def test_windows_start_at_the_decisions_of_who_demonstrated(demonstrations):
    by_policy = dataclasses.replace(demonstrations, decision_stride=4)
    sampler = WindowSampler(by_policy, tiny_policy())
    starts = [
        frame
        for first, end in itertools.pairwise(demonstrations.offsets.tolist())
        for frame in range(first, end, 4)
    ]
    assert sampler.frames.tolist() == starts
    batch = sampler.batch(np.array([1]))
    follow = chunk_windows(demonstrations.offsets, 4)[0][starts[1]]
    np.testing.assert_array_equal(batch["action"][0], demonstrations.actions[follow])


def test_a_policy_can_demonstrate_its_own_successes(tmp_path):
    path = save_tiny_policy(tmp_path / "policy")
    policy = tiny_policy()
    bc = BC(demonstrations=f"policy:{path}", episodes=5)
    sets = [
        demonstrations_for(
            demonstration_source(FinetuneConfig(task=NEW, env=ENV, method=bc, seed=seed)), policy
        )
        for seed in (0, 0, 1)
    ]
    assert sets[0].num_episodes == 5
    assert sets[0].success[sets[0].offsets[1:] - 1].all()
    assert sets[0].decision_stride == 4
    np.testing.assert_array_equal(sets[0].actions, sets[1].actions)
    assert (
        sets[0].actions.shape != sets[2].actions.shape or (sets[0].actions != sets[2].actions).any()
    )
    with pytest.raises(UnknownNameError, match="razor-base"):
        BC(demonstrations="policy:razor-bas").validate(FinetuneConfig())


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="cosine"):
        BC(schedule="linear")


def test_who_goes_on_has_the_statistics_at_once(demonstrations):
    """Not only with the next update: what is measured before it must be the policy that was."""

    def mean(policy):
        step = next(s for s in policy.preprocessor.steps if hasattr(s, "norm_map"))
        return torch.as_tensor(step.stats["observation.state"]["mean"])

    method, _ = make_bc(demonstrations, statistics="demonstrations", epochs=1)
    before = method.state()
    method.update(1)
    other, policy = make_bc(demonstrations, statistics="demonstrations", epochs=1)
    policy_mean = mean(policy)
    other.load_state(before)
    assert torch.equal(mean(policy), policy_mean)
    after = method.state()
    other.load_state(after)
    assert torch.equal(mean(policy), after.tensors["observation.state/mean"])
    assert not torch.equal(mean(policy), policy_mean)
