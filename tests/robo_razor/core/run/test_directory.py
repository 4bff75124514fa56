"""The run directory survives crashes, refuses to overwrite, and restores exactly."""

from pathlib import Path

import pytest
import torch

from robo_razor.core.errors import CheckpointError, RunDirectoryError
from robo_razor.core.files import atomic_directory, write_json, write_text
from robo_razor.core.metrics import EpisodeEntry, Summary
from robo_razor.core.run.directory import (
    RunDirectory,
    TrainingState,
    find_pretrained_model,
    refuse_used_directory,
)
from robo_razor.core.settings.config import FinetuneConfig


def save_policy(directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_text("weights")


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(FinetuneConfig(out=str(tmp_path / "run")))
    yield run
    run.close()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert (tmp_path / "a.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    with atomic_directory(tmp_path / "d") as directory:
        (directory / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "d") as directory:
        (directory / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "d" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_create_writes_config_and_environment(run):
    assert run.config_data()["method"] == "ppo"
    assert "packages" in (run.path / "environment.json").read_text()


def test_without_out_a_fresh_name_is_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(2):
        run = RunDirectory.create(FinetuneConfig())
        names.append(run.path.name)
        run.close()
    assert names == ["PlaceCanInBin-ppo-seed0-001", "PlaceCanInBin-ppo-seed0-002"]


def test_a_directory_in_use_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="already holds files.*Choose another"):
        RunDirectory.create(FinetuneConfig(out=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_old_run_is_refused_with_a_way_to_go_on(run):
    with pytest.raises(RunDirectoryError, match="--resume"):
        RunDirectory.create(FinetuneConfig(out=str(run.path)))


def test_a_file_as_output_directory_is_refused(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        refuse_used_directory(tmp_path / "f")


def test_two_processes_never_share_a_run(run):
    run.save_checkpoint(save_policy, TrainingState(step=1))
    with pytest.raises(RunDirectoryError, match="Another process is running"):
        RunDirectory.resume(run.path)
    run.close()
    RunDirectory.resume(run.path).close()


def test_links_are_relative_and_old_checkpoints_are_dropped(run):
    for step in range(6):
        run.save_checkpoint(save_policy, TrainingState(step=step), keep=2, best=step == 1)
    assert run.steps() == [1, 4, 5]
    assert (run.checkpoints / "last").readlink() == Path("000005")
    assert (run.checkpoints / "best").readlink() == Path("000001")
    assert run.best_step() == 1
    moved = run.path.rename(run.path.with_name("moved"))
    assert (moved / "checkpoints" / "last" / "pretrained_model" / "config.json").is_file()


def test_saving_a_step_again_replaces_it(run):
    run.save_checkpoint(save_policy, TrainingState(step=1, extra={"a": 1}))
    run.save_checkpoint(save_policy, TrainingState(step=1, extra={"a": 2}))
    assert run.load_state(1).extra == {"a": 2}
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["000001", "last"]


def test_a_crash_while_saving_keeps_the_last_checkpoint(run):
    run.save_checkpoint(save_policy, TrainingState(step=1))

    def crash(directory):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        run.save_checkpoint(crash, TrainingState(step=2))
    assert run.steps() == [1]
    assert run.load_state().step == 1


def test_resume_removes_leftovers(run):
    run.save_checkpoint(save_policy, TrainingState(step=1))
    run.close()
    (run.checkpoints / ".000002.99.tmp").mkdir()
    RunDirectory.resume(run.path).close()
    assert not list(run.checkpoints.glob(".*"))


def test_resume_without_checkpoint_says_so(run):
    run.close()
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        RunDirectory.resume(run.path)


def test_open_wants_a_run_directory(tmp_path):
    with pytest.raises(RunDirectoryError, match="does not exist"):
        RunDirectory.open(tmp_path / "nope")
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_a_missing_step_lists_those_there_are(run):
    run.save_checkpoint(save_policy, TrainingState(step=1))
    with pytest.raises(CheckpointError, match="step 7.*Allowed: 1"):
        run.load_state(7)


@pytest.mark.parametrize("name", ["optimizer_state.safetensors", "training_step.json"])
def test_a_truncated_training_state_is_an_error(run, name):
    state = TrainingState(step=1, optimizers={"policy": trained(torch.nn.Linear(2, 2))[1]})
    file = run.save_checkpoint(save_policy, state) / "training_state" / name
    file.write_bytes(file.read_bytes()[:7])
    with pytest.raises(CheckpointError, match="truncated"):
        run.load_state()


def trained(model, state=None, steps=3):
    """Train a little; return the model's weights and the optimizer's state."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.9))
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()
    return model.state_dict(), optimizer.state_dict()


def test_a_resumed_optimizer_goes_on_bit_for_bit(run):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    weights, optimizer = trained(model)
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    run.save_checkpoint(
        save_policy,
        TrainingState(step=3, optimizers={"policy": optimizer}, tensors=weights),
    )
    random_state = torch.get_rng_state()
    expected, _ = trained(model, optimizer)

    loaded = run.load_state()
    again = torch.nn.Linear(2, 2)
    again.load_state_dict(loaded.tensors)
    torch.set_rng_state(random_state)
    actual, _ = trained(again, loaded.optimizers["policy"])
    for name in expected:
        assert torch.equal(expected[name], actual[name])
    assert loaded.optimizers["policy"]["param_groups"][0]["betas"] == (0.8, 0.9)


def test_every_way_to_name_a_checkpoint(run):
    run.save_checkpoint(save_policy, TrainingState(step=1), best=True)
    model = run.pretrained_model(1)
    for path in (
        run.path,
        run.checkpoints,
        run.checkpoints / "000001",
        run.checkpoints / "best",
        model,
    ):
        assert find_pretrained_model(path).resolve() == model.resolve()


def test_missing_and_incomplete_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist.*run directory"):
        find_pretrained_model(tmp_path / "nope")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"incomplete: model\.safetensors"):
        find_pretrained_model(tmp_path)


def test_summaries_come_back_in_order_of_steps(run):
    for step in (10, 0, 2):
        new = {"New": {"success_rate": 0.5, "n": 2, "interval": [0.1, 0.9]}}
        run.write_summary(step, Summary.from_json({"step": step, "new": new}))
    run.write_episodes(10, [EpisodeEntry(task="a", seed=seed, success=True) for seed in (1, 2)])
    assert [summary.step for summary in run.summaries()] == [0, 2, 10]
    assert (run.path / "eval/000010/episodes.jsonl").read_text().count("\n") == 2
