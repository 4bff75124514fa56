from __future__ import annotations

import numpy as np
import torch
from toy_env import ToyVectorEnv
from toy_policy import RED, tiny_policy

from robo_razor.core.types import make_rows
from robo_razor.rollout.actors import ExpertActor, LabellingActor
from robo_razor.rollout.episodes import run_actor
from robo_razor.rollout.recorders import LandmarkTracker, Recorder

ROWS = make_rows(RED, range(6))


def recorded(num_envs, last_in_first_out=False, **keep):
    env = ToyVectorEnv(num_envs, 2, image_size=16, last_in_first_out=last_in_first_out)
    recorder = Recorder(**keep)
    actor = LabellingActor(ExpertActor("a"), ExpertActor("b"), tiny_policy())
    batch = run_actor(env, actor, ROWS, observer=recorder)
    return recorder, batch


def test_the_order_in_which_workers_finish_does_not_matter():
    recorder = recorded(1, landmarks=True)[0]
    other = recorded(4, last_in_first_out=True, landmarks=True)[0]
    expected = dict.fromkeys(range(6), "lift the red block")
    assert recorder.instructions == other.instructions == expected
    for part in (0, 1):
        first, second = (
            r.in_order([torch.from_numpy(landmarks[part]) for landmarks in r.landmarks])
            for r in (recorder, other)
        )
        assert torch.equal(first, second)
    for name in ("actions", "label"):
        first, second = (
            r.in_order([torch.from_numpy(getattr(d, name)) for d in r.decisions])
            for r in (recorder, other)
        )
        assert torch.equal(first, second)
    first, second = recorder.inputs(), other.inputs()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_only_what_was_asked_for_is_kept():
    slim, batch = recorded(3)
    assert not slim.landmarks
    assert not slim.observations
    recorder = recorded(3, observations=True)[0]
    rows = [len(observation["agent_pos"]) for observation in recorder.observations]
    assert sum(rows) == batch.decisions.sum()
    assert sum(map(len, slim.rewards)) == batch.decisions.sum()
    owner = np.concatenate(slim.episodes)[slim.order]
    np.testing.assert_array_equal(np.bincount(owner), batch.decisions)


def test_landmarks_that_were_never_seen_are_none():
    tracker = LandmarkTracker()
    ids = np.array([0, 2])
    tracker.update(ids, {"other": 1})
    assert tracker.of(ids) is None
    landmarks = np.arange(12.0, dtype=np.float32).reshape(2, 2, 3)
    infos = {"landmarks": landmarks, "landmarks_present": np.ones((2, 2), bool)}
    tracker.update(ids, infos)
    landmarks[:] = 0.0  # the environment may use its memory again
    positions, present = tracker.of(np.array([2]))
    assert positions.tolist() == [[[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]]
    assert present.all()
    assert tracker.of(np.array([1, 2])) is None
