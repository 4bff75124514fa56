"""Manifests of start states: files, what they refuse, and those that ship."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from toy_policy import GREEN, NEW, RED

from robo_razor.cli import commands as cli
from robo_razor.cli.manifest import run_manifest
from robo_razor.core.errors import ManifestError
from robo_razor.core.settings.config import HELD_OUT_SEED, EnvConfig, ManifestConfig
from robo_razor.core.types import EpisodeRow, make_rows
from robo_razor.rollout.environments import make_env
from robo_razor.rollout.start_states import (
    EPISODES,
    Manifest,
    describe,
    held_out_rows,
    shipped_manifests,
)

TOY = {"image_size": 16, "env_packages": ("toy_env",)}
ROWS = held_out_rows({"a": RED, "b": NEW}, 5)
MADE = Manifest(
    (EpisodeRow(RED, 7, "lift it", 0), EpisodeRow(NEW, 9, None, 1)), ("0123456789abcdef", None)
)


def toy(num_envs, num_workers=1, task=RED):
    return make_env(
        task, EnvConfig(num_envs=num_envs, num_workers=num_workers, **TOY), chunk_size=1
    )


@pytest.mark.parametrize("name", ["m.json", "m.json.gz"])
def test_a_manifest_survives_its_file(tmp_path, name):
    MADE.save(tmp_path / name)
    loaded = Manifest.load(tmp_path / name)
    assert (loaded.rows, loaded.start_states) == (MADE.rows, MADE.start_states)
    assert loaded.source_hash == MADE.hash == loaded.hash
    assert loaded.name == str(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    loaded.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_the_file_is_as_documented(tmp_path):
    MADE.save(tmp_path / "m.json")
    data = json.loads((tmp_path / "m.json").read_text())
    assert data == {
        "kind": "robo-razor manifest",
        "version": 1,
        "hash": MADE.hash,
        "rows": [
            {
                "row": 0,
                "task": RED,
                "seed": 7,
                "instruction": "lift it",
                "start_state": "0123456789abcdef",
            },
            {"row": 1, "task": NEW, "seed": 9, "instruction": None, "start_state": None},
        ],
    }


@pytest.mark.parametrize(
    "change",
    [
        {"rows": MADE.rows[::-1]},
        {"rows": (replace(MADE.rows[0], seed=8), MADE.rows[1])},
        {"rows": (replace(MADE.rows[0], instruction="lift"), MADE.rows[1])},
        {"start_states": (None, None)},
    ],
)
def test_the_hash_is_that_of_the_rows(change):
    assert replace(MADE, **change).hash != MADE.hash
    assert replace(MADE, name="other", source_hash="x").hash == MADE.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "x"}, "is not a manifest: its `kind` is not 'robo-razor manifest'"),
        ({"version": 2}, "has version 2. Allowed: 1"),
        ({"hash": "0"}, "were changed: their hash is .*, the file says 0"),
        ({"rows": []}, "has no rows"),
        ({"rows": [{"row": 0, "task": RED}]}, "a row that cannot be used: `row.seed` is missing"),
        ({"rows": ["x"]}, "a row that cannot be used: `row` is 'x'"),
        ({"rows": [{"row": 4, "task": RED, "seed": 1}]}, "are not numbered 0, 1, 2"),
        ({"rows": [{"row": 0, "task": RED, "seed": 1}]}, "were changed"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, message):
    file = tmp_path / "m.json"
    MADE.save(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ManifestError, match=message):
        Manifest.load(file)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    MADE.save(tmp_path / "m.json.gz")
    data = (tmp_path / "m.json.gz").read_bytes()
    (tmp_path / "m.json.gz").write_bytes(data[:-20])
    with pytest.raises(ManifestError, match=r"m\.json\.gz cannot be read"):
        Manifest.load(tmp_path / "m.json.gz")
    (tmp_path / "m.json").write_text('{"kind": ')
    with pytest.raises(ManifestError, match=r"m\.json cannot be read"):
        Manifest.load(tmp_path / "m.json")
    with pytest.raises(ManifestError, match=r"Did you mean 'razor'.*`robo-razor manifest` makes"):
        Manifest.load("razr")
    with pytest.raises(ManifestError, match=r"Allowed: \.json or \.json\.gz"):
        MADE.save(tmp_path / "m.yaml")


def test_selected_rows_keep_their_numbers():
    manifest = replace(describe(toy(4), ROWS), source_hash="of the file")
    few = manifest.select([NEW], 2)
    assert [(row.row_id, row.seed) for row in few.rows] == [
        (5, HELD_OUT_SEED),
        (6, HELD_OUT_SEED + 1),
    ]
    assert few.start_states == manifest.start_states[5:7]
    assert few.source_hash == "of the file"
    assert manifest.select(manifest.tasks) == manifest
    assert len(manifest.select([GREEN])) == 0


@pytest.mark.parametrize(("num_envs", "num_workers"), [(1, 1), (3, 2), (16, 4)])
def test_a_description_depends_on_the_rows_only(num_envs, num_workers):
    expected = describe(toy(4), ROWS)
    manifest = describe(toy(num_envs, num_workers), ROWS[::-1])
    assert manifest.rows[::-1] == expected.rows
    assert manifest.start_states[::-1] == expected.start_states
    assert len(set(expected.start_states)) == len(ROWS)
    assert {row.instruction for row in expected.rows} == {
        "lift the red block",
        "lift the blue block",
    }


def test_own_words_stay_and_leave_the_start_state_alone():
    rows = [*make_rows(RED, [3], instruction="do it"), *make_rows(RED, [3], first_row_id=1)]
    manifest = describe(toy(2), rows)
    assert [row.instruction for row in manifest.rows] == ["do it", "lift the red block"]
    assert manifest.start_states[0] == manifest.start_states[1]


def test_an_environment_without_hashes_gives_none():
    env = make_env(
        "serial/ReachRed-v0", EnvConfig(num_envs=2, env_packages=("toy_env",)), chunk_size=1
    )
    manifest = describe(env, make_rows("serial/ReachRed-v0", range(3)))
    assert manifest.start_states == (None, None, None)
    manifest.check_start_state(0, None)
    manifest.check_start_state(0, "whatever is known now")


def test_a_check_that_could_compare_nothing_does_not_say_that_all_is_well(tmp_path):
    env = EnvConfig(num_envs=2, env_packages=("toy_env",))
    made = run_manifest(
        ManifestConfig(skills="ReachRed", episodes=2, env=env, out=str(tmp_path / "m.json"))
    )
    replace(made, start_states=(None, None)).save(tmp_path / "none.json")
    with pytest.raises(ManifestError, match="there is nothing to check"):
        run_manifest(ManifestConfig(check=str(tmp_path / "none.json"), env=env))


def test_the_command_writes_and_checks(tmp_path, capsys):
    file = str(tmp_path / "m.json.gz")
    flags = ["--env.env-packages", "toy_env", "--env.num-envs", "3"]
    assert cli.main(["manifest", "--episodes", "4", "--out", file, *flags]) == 0
    assert "12 rows, 3 tasks\nhash " in capsys.readouterr().out
    assert cli.main(["manifest", "--check", file, *flags]) == 0
    assert "all 12 start states are as in the manifest" in capsys.readouterr().out
    made = Manifest.load(file)
    states = (*made.start_states[:-1], "0" * 16)
    replace(made, start_states=states).save(file)
    assert cli.main(["manifest", "--check", file, "--skills", "ReachRed", *flags]) == 0
    assert cli.main(["manifest", "--check", file, *flags]) == 2
    assert "Row 11 of the manifest" in capsys.readouterr().err
    with pytest.raises(ManifestError, match="leave no row"):
        run_manifest(ManifestConfig(skills="none", env=EnvConfig(**TOY)))


# ---- the shipped ones --------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_manifests())
def test_shipped_manifests_are_what_the_command_writes(name, tmp_path):
    manifest = Manifest.load(name)
    manifest.save(tmp_path / "again.json.gz")
    again, shipped = (tmp_path / "again.json.gz").read_bytes(), shipped_manifests()[name]
    assert gzip.decompress(again) == gzip.decompress(shipped.read_bytes())


def test_the_default_manifest_has_every_skill_and_its_words():
    import gym_razor
    from gym_razor.suite.tasks import TASKS

    manifest = Manifest.load("razor")
    assert sorted(manifest.tasks) == sorted([*gym_razor.PRIOR_TASKS, *gym_razor.NEW_TASKS])
    assert len(set(manifest.start_states)) == len(manifest) == EPISODES * len(manifest.tasks)
    seeds = np.array([row.seed for row in manifest.rows]).reshape(-1, EPISODES)
    assert (seeds == HELD_OUT_SEED + np.arange(EPISODES)).all()
    for row in manifest.rows[:: 1 + EPISODES // 20]:
        assert TASKS[row.task].sample(row.seed)[2] == row.instruction


@pytest.mark.gl
@pytest.mark.parametrize("name", shipped_manifests())
def test_shipped_manifests_still_describe_the_same_start_states(name):
    """Two per skill, from both ends; `robo-razor manifest --check` looks at all."""
    manifest = Manifest.load(name)
    rows = [
        row
        for task in manifest.tasks
        for row in (manifest.select([task]).rows[0], manifest.select([task]).rows[-1])
    ]
    config = EnvConfig(num_envs=len(rows) // 2, num_workers=2, image_size=16)
    env = make_env(manifest.tasks[0], config, chunk_size=1)
    try:
        current = describe(env, [replace(row, instruction=None) for row in rows])
    finally:
        env.close()
    expected = [manifest.start_states[row.row_id] for row in rows]
    remedy = f"make it again: robo-razor manifest --out robo_razor/rollout/manifests/{name}.json.gz"
    assert list(current.start_states) == expected, remedy
    assert [row.instruction for row in current.rows] == [row.instruction for row in rows]
