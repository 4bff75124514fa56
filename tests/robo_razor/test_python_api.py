"""The toolkit from Python: `import robo_razor as rr`."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from toy_policy import GREEN, NEW, RED, save_tiny_policy

import robo_razor as rr

ENV = rr.EnvConfig(num_envs=8, num_workers=1, image_size=16, env_packages=("toy_env",))
TRACKING = rr.TrackingConfig(
    every=1,
    episodes_new=4,
    episodes_new_sampled=2,
    episodes_prior=2,
    kl_states=8,
    final_episodes_new=4,
    max_share=1.0,
)
SMALL = rr.PPO(num_updates=2, episodes_per_update=32, minibatch_size=64, temperature=1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a policy of the toy environment, as users have one."""
    return rr.load_policy(str(save_tiny_policy(tmp_path_factory.mktemp("api") / "base")))


@pytest.fixture(scope="module")
def run(base):
    """Return a small run that nobody gave a place."""
    return rr.finetune(
        base, NEW, SMALL, prior=f"{GREEN},{RED}", env=ENV, tracking=TRACKING, torch_threads=1
    )


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, robo_razor as rr; dir(rr); rr.RoboRazorError; rr.EnvConfig; "
        "print(sorted({'torch', 'lerobot', 'gymnasium', 'pandas', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", rr.__all__)
def test_every_name_leads_somewhere_and_is_documented(name):
    assert getattr(rr, name).__doc__
    assert name in dir(rr)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'robo_razor' has no attribute 'fine_tune'"):
        rr.fine_tune  # noqa: B018


def test_a_run_has_a_table_and_policies(run, base, capsys):
    table = run.table()
    assert table["step"].tolist() == [0, 1, 2]
    assert table["kl_base_tuned/new_base_visited"][0] == 0.0
    assert {"new_success_rate", "prior_success_rate", "prior_retention"} <= set(table.columns)
    assert run.steps == (0, 1, 2)
    assert [summary.step for summary in run.summaries] == [0, 1, 2]
    assert run.config.method == SMALL
    assert isinstance(run.best, rr.Policy)
    assert rr.measure(base, run.checkpoint(0), RED, states=8, env=ENV)["kl_base_tuned"].mean == 0.0
    assert capsys.readouterr().out == ""


def test_a_run_without_a_place_leaves_nothing(base):
    run = rr.finetune(
        base,
        NEW,
        SMALL,
        prior="none",
        env=ENV,
        tracking=TRACKING,
        torch_threads=1,
    )
    place = run.path
    assert place.is_dir()
    del run
    gc.collect()
    assert not place.exists()


def test_a_step_that_is_not_there_is_refused_with_those_that_are(run):
    with pytest.raises(rr.RoboRazorError, match=r"no policy of step 7.*0, 1, 2"):
        run.checkpoint(7)


def test_a_run_can_be_loaded_again(run):
    again = rr.load_run(run.path)
    assert again.steps == run.steps
    assert "steps=[0, 1, 2]" in repr(again)
    with pytest.raises(rr.RoboRazorError, match="does not exist"):
        rr.load_run(run.path / "nowhere")


def test_regularisers_and_methods_are_objects(base):
    run = rr.finetune(
        base,
        NEW,
        rr.GRPO(num_updates=1, episodes_per_update=32, group_size=4, temperature=1.0),
        regularisers=[rr.L2(weight=0.5), rr.KL(weight=0.1)],
        prior="none",
        env=ENV,
        tracking=TRACKING,
        torch_threads=1,
    )
    assert run.config.method.name == "grpo"
    assert [term.name for term in run.config.regularise] == ["l2", "kl"]


def test_a_policy_that_was_changed_is_not_taken_for_what_it_was(base):
    changed = base.frozen_copy()
    next(changed.module.parameters()).data.add_(1.0)
    with pytest.raises(rr.RoboRazorError, match=r"was changed or made in this process.*save"):
        rr.finetune(changed, NEW, SMALL, prior="none", env=ENV)


def test_evaluate_returns_results_by_skill(base, capsys):
    results = rr.evaluate(base, f"{GREEN},{RED}", 3, env=ENV)
    assert len(results) == 2
    for result in results.values():
        assert result.n == 3
        assert 0.0 <= result.interval[0] <= result.success_rate <= result.interval[1] <= 1.0
    assert capsys.readouterr().out == ""


def test_measure_needs_no_success_and_takes_given_states(base, run):
    states = rr.visited_states(base, RED, 8, env=ENV)
    measured = rr.measure(base, run.last, states)
    assert measured["kl_base_tuned"].mean > 0.0
    assert measured["kl_base_tuned"].kind == "exact"
    assert len(repr(measured["kl_base_tuned"])) < 150
    assert measured.states is states
    assert measured.distances["weight_l2"] > 0.0
    assert "on 8 states" in repr(measured)


def test_policies_that_cannot_be_compared_are_refused(base, tmp_path):
    other = rr.load_policy(str(save_tiny_policy(tmp_path / "other", n_action_steps=2)))
    with pytest.raises(rr.RoboRazorError, match=r"cannot be compared: actions"):
        rr.measure(base, other, RED, env=ENV)


def test_rollout_is_a_function_beside_the_package_of_that_name(base):
    result = rr.rollout(base, RED, 2, env=ENV)
    assert len(result.batch) == 2
    assert 0.0 <= result.success_rate <= 1.0


def test_runs_are_compared_from_python(run):
    comparison = rr.compare([str(run.path)])
    assert comparison.headline
    assert comparison.report["runs"]


def test_tasks_are_listed_with_roles_and_limits():
    (new,) = (t for t in rr.list_tasks("new") if t.skill == "PlaceCanInBin")
    assert new == rr.TaskInfo("gym_razor/PlaceCanInBin-v0", "PlaceCanInBin", "new", 80)
    assert {task.role for task in rr.list_tasks("prior")} == {"prior"}
