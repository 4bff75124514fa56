"""The README says what is true: its code runs, its links lead somewhere, and it is short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from registries import let_add
from toy_policy import GREEN, NEW, save_tiny_policy
from toy_runs import metrics

from robo_razor.cli.commands import main
from robo_razor.core.plugins import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 130


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_every_link_leads_to_a_file(target):
    assert (ROOT / target).exists()


def test_the_tree_names_the_rooms():
    tree = README[README.index("## The rooms") : README.index("## Add a method")]
    rooms = {path.name for path in (ROOT / "robo_razor").iterdir() if path.is_dir()}
    named = set(re.findall(r"^  (\w+)/", tree, re.M))
    assert named == rooms - {"__pycache__", "lerobot_env", "configs"}


def test_its_lines_of_python_run(tmp_path):
    """With smaller numbers and the toy environment; what it calls and prints is the same."""
    base = save_tiny_policy(tmp_path / "base")
    code = BLOCKS[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    changes = {
        '"razor-base"': repr(base),
        '"PlaceCanInBin"': repr(NEW),
        '"OpenDrawer,LiftCube"': f"{GREEN!r}, env=ENV, tracking=SMALL",
        '"OpenDrawer"': f"{GREEN!r}, env=ENV",
        "episodes_per_update=32": "episodes_per_update=32, temperature=1.0",
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    code = code.replace(
        "base = ",
        "ENV = rr.EnvConfig(num_envs=8, num_workers=1, image_size=16, env_packages=('toy_env',))\n"
        "SMALL = rr.TrackingConfig(every=1, episodes_new=4, episodes_new_sampled=4, kl_states=8, "
        "episodes_prior=2, final_episodes_new=4)\nbase = ",
        1,
    )
    file = tmp_path / "ten_lines.py"
    file.write_text(code)
    places = os.pathsep.join(sys.path)  # the toys, too
    done = subprocess.run(
        [sys.executable, str(file)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": places},
    )
    assert done.returncode == 0, done.stderr
    assert "new_success_rate" in done.stdout
    assert "SkillResult" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Divergence(mean=")


def test_its_method_trains(tmp_path, monkeypatch, capsys):
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "my_method.py").write_text(BLOCKS[1])
    monkeypatch.syspath_prepend(str(tmp_path / "plugin"))
    let_add(monkeypatch, METHODS)
    base, out = save_tiny_policy(tmp_path / "base"), tmp_path / "run"
    words = [
        "finetune", "--plugins", "my_method", "--method", "winners", "--policy", str(base),
        "--task", NEW, "--out", str(out), "--torch-threads", "1", "--winners.num-updates", "2",
        "--winners.episodes-per-update", "32", "--winners.temperature", "1", "--prior-tasks",
        "none", "--env.num-envs", "8", "--env.num-workers", "1", "--env.image-size", "16",
        "--env.env-packages", "toy_env", "--tracking.every", "1", "--tracking.episodes-new", "4",
        "--tracking.final-episodes-new", "4", "--tracking.episodes-new-sampled", "4",
        "--tracking.kl-states", "8",
    ]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    assert sum("train/policy_loss" in line for line in metrics(out)) == 2
    sys.modules.pop("my_method", None)


def test_the_citation_can_be_read():
    data = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert data["title"].startswith("robo-razor")
    assert data["cff-version"] == "1.2.0"
