"""The bound of a rollout is made of the same decisions; how near a rollout comes is not tested."""

from __future__ import annotations

import json

import acting
import pytest

pytestmark = [pytest.mark.gl, pytest.mark.lerobot]


def test_the_command_writes_a_share_and_what_it_is_made_of(tmp_path, capsys):
    file = tmp_path / "acting.json"
    small = [
        "--repeats",
        "1",
        "--episodes",
        "3",
        "--num-envs",
        "2",
        "--workers",
        "1",
        "--threads",
        "1",
    ]
    acting.main([*small, "--json", str(file)])
    assert "bound / rollout" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert 0.0 < document["share"] < 2.0
    assert document["decisions"] >= 3
    assert document["decisions_per_s"] == pytest.approx(
        document["decisions"] / document["rollout_s"]
    )
    assert document["machine"]["cores"] >= 1


def test_a_replay_executes_the_recorded_actions(tmp_path):
    settings = acting.parse(
        ["--episodes", "3", "--num-envs", "2", "--workers", "1", "--threads", "1"]
    )
    policy = acting.load_policy(settings.policy, "cpu")
    policy.module.eval()
    env = acting.make_fitting_env(
        policy, [settings.task], acting.EnvConfig(num_envs=2, num_workers=1)
    )
    try:
        rows = acting.make_rows(settings.task, [3, 4, 5])
        recording = acting.Recording(acting.PolicyActor(policy, "sample", record=True))
        batch = acting.run_actor(env, recording, rows, record=True)
        again = acting.run_actor(env, acting.Replay(recording), rows)
    finally:
        env.close()
    assert len(recording.chunks) == batch.decisions.sum()
    assert again.decisions.tolist() == batch.decisions.tolist()
    assert again.control_steps.tolist() == batch.control_steps.tolist()
    assert again.success.tolist() == batch.success.tolist()
