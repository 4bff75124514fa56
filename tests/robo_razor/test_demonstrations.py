from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console
from toy_policy import GREEN, NEW, RED, save_tiny_policy, tiny_policy

from robo_razor.actors import ExpertActor
from robo_razor.config import BCConfig, CollectConfig, EnvConfig, FinetuneConfig
from robo_razor.demonstrations import (
    check_fit,
    collect_demonstrations,
    demonstrations_for,
    run_collect,
)
from robo_razor.environment import make_env
from robo_razor.errors import DemonstrationError, RunDirectoryError
from robo_razor.lerobot_dataset import load_demonstrations, save_demonstrations

ENV = EnvConfig(num_envs=8, image_size=16, env_packages=("toy_env",))


def quiet():
    return Console(file=io.StringIO())


def toy(num_envs=8):
    config = EnvConfig(num_envs=num_envs, image_size=16, env_packages=("toy_env",))
    return make_env(NEW, config, chunk_size=1)


def expert(episodes=6, style="a", num_envs=8):
    return collect_demonstrations(toy(num_envs), ExpertActor(style), NEW, episodes)


def same(one, two):
    assert one.instructions == two.instructions
    for name in ("state", "actions", "offsets", "rewards", "success"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.images.keys() == two.images.keys()
    for name, images in one.images.items():
        np.testing.assert_array_equal(images, two.images[name])


def test_demonstrations_hold_whole_successful_episodes():
    demos = expert()
    assert demos.num_episodes == 6
    ends = demos.offsets[1:] - 1
    assert demos.success[ends].all()
    assert not np.delete(demos.success, ends).any()
    assert demos.rewards.sum() == 6
    assert set(demos.instructions) == {"lift the blue block"}
    assert demos.images["front"].shape == (len(demos), 16, 16, 3)
    assert demos.landmarks.shape == (len(demos), 3, 3)


def test_an_observation_belongs_to_the_action_taken_there():
    demos = expert()
    # The state is the vector to the dots, so an action shortens it by a tenth of itself.
    for first, last in zip(demos.offsets[:-1], demos.offsets[1:], strict=True):
        to_blue = demos.state[first:last, 4:6]
        moved = to_blue[:-1] - to_blue[1:]
        np.testing.assert_allclose(moved, 0.1 * demos.actions[first : last - 1, :2], atol=1e-5)


def test_demonstrations_do_not_depend_on_the_number_of_envs():
    same(expert(num_envs=8), expert(num_envs=3))


def test_styles_differ():
    one, other = expert(style="a"), expert(style="b")
    assert (one.actions[:, 4] == -1).all()
    assert (other.actions[:, 4] == 1).all()


def test_a_dataset_comes_back_as_it_was_written(tmp_path):
    demos = expert()
    save_demonstrations(demos, tmp_path / "data")
    same(load_demonstrations(tmp_path / "data"), demos)
    assert load_demonstrations(tmp_path / "data", max_episodes=2).num_episodes == 2


def test_demonstrations_without_a_state_are_written_too(tmp_path):
    demos = expert(3)
    nothing = np.zeros((len(demos), 0), np.float32)
    save_demonstrations(dataclasses.replace(demos, state=nothing), tmp_path / "data")
    assert load_demonstrations(tmp_path / "data").state.shape == (len(demos), 0)


def test_lerobot_reads_what_was_written(tmp_path):
    from lerobot.datasets import LeRobotDataset

    demos = expert(3)
    save_demonstrations(demos, tmp_path / "data")
    dataset = LeRobotDataset("local/data", root=tmp_path / "data")
    assert len(dataset) == len(demos)
    item = dataset[len(demos) - 1]
    assert item["task"] == "lift the blue block"
    assert bool(item["next.success"])
    np.testing.assert_allclose(item["action"], demos.actions[-1])
    image = (item["observation.images.wrist"].permute(1, 2, 0) * 255).round().numpy()
    np.testing.assert_array_equal(image, demos.images["wrist"][-1])


def test_collect_writes_several_tasks_and_refuses_to_overwrite(tmp_path):
    config = CollectConfig(task="prior", episodes=3, out=str(tmp_path / "data"), noise=0.2, env=ENV)
    run_collect(config, quiet())
    demos = load_demonstrations(tmp_path / "data")
    assert demos.instructions == ("lift the red block",) * 3 + ("lift the green block",) * 3
    with pytest.raises(RunDirectoryError, match="in use"):
        run_collect(config, quiet())


def test_collect_takes_a_policy(tmp_path):
    base = save_tiny_policy(tmp_path / "base")
    config = CollectConfig(
        task=f"{RED},{GREEN}", policy=base, episodes=1, out=str(tmp_path / "data"), env=ENV
    )
    run_collect(config, quiet())
    assert load_demonstrations(tmp_path / "data").num_episodes == 2


def test_a_demonstrator_that_never_succeeds_is_given_up():
    class Idle:
        def decide(self, request):
            from robo_razor.actors import Decision

            return Decision(np.zeros((len(request.env_ids), 1, 5), np.float32))

    with pytest.raises(DemonstrationError, match=r"of \d+ episodes .* succeeded"):
        collect_demonstrations(toy(), Idle(), NEW, 5)


def test_bc_takes_the_expert_or_a_dataset(tmp_path):
    def of(source, seed=0):
        bc = BCConfig(demonstrations=source, episodes=4)
        config = FinetuneConfig(method="bc", task=NEW, bc=bc, env=ENV, seed=seed)
        return demonstrations_for(config, tiny_policy(), quiet())

    save_demonstrations(of("expert"), tmp_path / "data")
    same(of("expert"), of(str(tmp_path / "data")))
    assert not np.array_equal(of("expert", seed=1).state[0], of("expert").state[0])


def test_what_does_not_fit_or_is_not_there_is_refused(tmp_path):
    with pytest.raises(DemonstrationError, match="robo-razor collect"):
        load_demonstrations(tmp_path / "none")
    with pytest.raises(DemonstrationError, match="64 px"):
        check_fit(expert(1), tiny_policy(image_size=64), "data")
    (tmp_path / "old" / "meta").mkdir(parents=True)
    (tmp_path / "old" / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    with pytest.raises(DemonstrationError, match="not v3"):
        load_demonstrations(tmp_path / "old")
    (tmp_path / "old" / "meta" / "info.json").write_text("{")
    with pytest.raises(DemonstrationError, match="no JSON"):
        load_demonstrations(tmp_path / "old")
