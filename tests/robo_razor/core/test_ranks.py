"""Two ranks make the run that one process makes, and every row is run once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks_child import METHODS, evaluation, settings
from toy_policy import save_tiny_policy
from toy_runs import finetune, metrics, quiet, summary, weights

from robo_razor.cli.evaluate import run_evaluate
from robo_razor.core.errors import ConfigError
from robo_razor.core.machine import local_processes
from robo_razor.core.ranks import ALONE, Ranks, launched

TOYS = Path(__file__).parents[2] / "toys"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("base"), state_noise=0.0, image_shift_px=0)


@pytest.fixture(scope="module")
def together(base, tmp_path_factory):
    """Run everything on two ranks and return the directory."""
    out = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TOYS), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    child = subprocess.run(
        [*command, str(TOYS / "ranks_child.py"), base, str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return out


def rows(run, step):
    text = (run / "eval" / f"{step:06d}" / "episodes.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("method", list(METHODS))
def test_two_ranks_make_the_run_of_one(together, base, tmp_path, method):
    alone, shared = tmp_path / "alone", together / method
    finetune(settings(base, alone, method), quiet())
    last = metrics(alone)[-1]["step"]
    assert rows(shared, 0) == rows(alone, 0)  # the same rows in the same order, none twice
    assert summary(shared, 0)["kl_base_tuned"] == summary(alone, 0)["kl_base_tuned"]
    of_shared, of_alone = metrics(shared), metrics(alone)
    assert [line["step"] for line in of_shared] == [line["step"] for line in of_alone]
    first = next(line for line in of_shared if line["step"] == 1 and "train/grad_norm" in line)
    other = next(line for line in of_alone if line["step"] == 1 and "train/grad_norm" in line)
    for key in first:
        if key.startswith(("train/", "rollout/")):
            assert first[key] == pytest.approx(other[key], rel=2e-3, abs=1e-4), key
    start, tuned = weights(alone, 0), weights(alone, last)
    moved = sum(float((tuned[k] - start[k]).abs().sum()) for k in tuned)
    shared_weights = weights(shared, last)
    apart = sum(float((tuned[k] - shared_weights[k]).abs().sum()) for k in tuned)
    assert moved > 0
    assert apart < 0.02 * moved


@pytest.mark.slow
def test_only_the_first_rank_writes_and_speaks(together):
    first, second = (json.loads((together / f"said-{k}.json").read_text()) for k in (0, 1))
    for method in METHODS:
        assert first[method] == [str(together / method), first[method][1], True]
        assert second[method] == [str(together / method), first[method][1], False]
    names = {item.name for item in together.iterdir()}
    assert names == {*METHODS, "all.json", "until.json", "said-0.json", "said-1.json"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("all", {}), ("until", {"until_width": 0.9})])
def test_an_evaluation_is_divided_without_loss(together, base, tmp_path, name, more):
    run_evaluate(evaluation(base, tmp_path / "alone.json", **more), quiet())
    alone = json.loads((tmp_path / "alone.json").read_text())
    shared = json.loads((together / f"{name}.json").read_text())
    assert shared["rows"] == alone["rows"]
    assert shared["skills"] == alone["skills"]


def test_without_a_launcher_one_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = launched()
    assert ranks is ALONE
    assert ranks.gather("x") == ["x"]
    assert ranks.totals({"a": 2.0}, maxima=("a",)) == {"a": 2.0}
    assert list(range(5))[ranks.share] == [0, 1, 2, 3, 4]
    assert [list(range(5))[Ranks(k, 2).share] for k in (0, 1)] == [[0, 2, 4], [1, 3]]


def test_one_device_for_several_ranks_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="'cuda:0', but 2 ranks"):
        launched("cuda:0")


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ("WORLD_SIZE=", "WORLD_SIZE is ''"),
        ("WORLD_SIZE=abc", "WORLD_SIZE is 'abc'"),
        ("WORLD_SIZE=0", "WORLD_SIZE is '0'"),
        ("WORLD_SIZE=-1", "WORLD_SIZE is '-1'"),
        (f"WORLD_SIZE={'9' * 5000}", "WORLD_SIZE is '9"),
        ("WORLD_SIZE=2 RANK=0", "RANK is set, but MASTER_ADDR is not"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=here", "MASTER_PORT is not"),
        ("WORLD_SIZE=2 RANK=0 MASTER_ADDR=here MASTER_PORT=x", "MASTER_PORT is 'x'"),
        ("WORLD_SIZE=2 RANK=", "RANK is ''"),
        ("WORLD_SIZE=2 RANK=5", "RANK is '5'.* from 0 to 1"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=x", "LOCAL_RANK is 'x'"),
        ("WORLD_SIZE=2 RANK=0 LOCAL_RANK=7", "LOCAL_RANK is '7'"),
    ],
    ids=lambda text: text[:40],
)
def test_variables_of_no_launcher_are_refused(variables, problem, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for variable in variables.split(" "):
        monkeypatch.setenv(*variable.split("="))
    with pytest.raises(ConfigError, match=f"{problem}.*start with `torchrun`.*unset WORLD_SIZE"):
        launched("cpu")


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("", 1), ("x", 1), ("0", 1), ("9" * 99, 1)])
def test_processes_of_this_machine(text, number, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", text)
    assert local_processes() == number


@pytest.mark.slow
def test_what_accelerate_launches_are_ranks(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "script.py"
    script.write_text(
        "from robo_razor.core.ranks import launched, part\n"
        "ranks = launched('cpu')\n"
        f"open(r'{tmp_path}/' + str(ranks.rank), 'w').write(str(ranks.gather(ranks.rank)))\n"
        "part()\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", str(script)]
    child = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-4000:]
    assert [(tmp_path / name).read_text() for name in "01"] == ["[0, 1]", "[0, 1]"]
