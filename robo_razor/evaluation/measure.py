"""The Python API of measurements: success on skills, and how far apart two policies are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from rich.console import Console

from robo_razor.core.errors import PolicyError
from robo_razor.core.metrics import NEW_BASE, PRIOR
from robo_razor.core.settings.config import (
    HELD_OUT_SEED,
    MAIN_TASK,
    EnvConfig,
)
from robo_razor.core.types import SkillResult
from robo_razor.evaluation.evaluate import chosen_skills
from robo_razor.evaluation.evaluate import evaluate as evaluate_in
from robo_razor.evaluation.forgetting import Divergence, measure_probe
from robo_razor.evaluation.predictors import Comparison, measure_predictors
from robo_razor.evaluation.probes import ProbeSet, make_probe
from robo_razor.policies.load import load_policy
from robo_razor.policies.policy import Policy
from robo_razor.rollout.environments import make_fitting_env
from robo_razor.rollout.episodes import episode_bar, run_episodes
from robo_razor.rollout.start_states import held_out_rows

PROBE_EPISODES = 4
"""Episodes per task from which probe states are taken."""

States = Literal["new", "prior"] | str | ProbeSet
"""Where policies are compared: `new`, `prior`, names of skills with commas, or observations."""


def evaluate(
    policy: str | Policy,
    skills: str = "all",
    episodes: int = 50,
    *,
    mode: Literal["greedy", "sample"] = "greedy",
    seed: int = 0,
    seed_offset: int = HELD_OUT_SEED,
    env: EnvConfig | None = None,
    progress: bool = False,
) -> dict[str, SkillResult]:
    """Measure a policy's success on skills, from held-out start states.

    Args:
        policy: A policy, or what `load_policy` takes.
        skills: `prior`, `new`, `all`, or skill names, Gymnasium ids, `lerobot:TYPE/TASK`, with
            commas.
        episodes: Episodes per skill (>= 1), each from a start state of its own.
        mode: Actions: the most likely (`greedy`) or drawn from the policy (`sample`).
        seed: Seed of sampled actions.
        seed_offset: Seed of the first start state.
        env: How environments are run in parallel.
        progress: Show a bar on standard error.

    Returns:
        Skill -> result; `success_rate` and `interval` (95 %, Wilson) are in [0, 1].

    Raises:
        RoboRazorError: Unknown skills or policy, or a policy that does not fit the environment.
    """
    loaded, settings = _load(policy), env or EnvConfig()
    tasks = chosen_skills(skills, settings.env_packages)
    environment = make_fitting_env(loaded, list(tasks.values()), settings)
    try:
        with episode_bar(Console(stderr=True) if progress else None, "evaluating") as bar:
            return evaluate_in(
                loaded,
                environment,
                tasks,
                episodes,
                seed_offset,
                mode,
                sampling_seed=seed,
                progress=bar,
            )
    finally:
        environment.close()


def measure(
    base: str | Policy,
    tuned: str | Policy,
    on: States = "new",
    *,
    states: int = 128,
    expensive: bool = False,
    env: EnvConfig | None = None,
) -> Measured:
    """Measure how far a tuned policy is from its base; success plays no part.

    Args:
        base: A policy, or what `load_policy` takes.
        tuned: Another policy with the same inputs and actions.
        on: The states on which they are compared. `new`, `prior` or names of skills: states that
            the base visits on these skills, greedily, from held-out start states. Or a `ProbeSet`.
        states: How many states (>= 1), of all tasks together.
        expensive: Also measure slow distances, such as Fisher-weighted ones.
        env: How environments are run in parallel.

    Returns:
        Name -> divergence, such as `kl_base_tuned`; its attribute `distances` has the others.

    Raises:
        RoboRazorError: Unknown skills, or policies that cannot be compared.
    """
    first, second = _load(base), _load(tuned)
    _refuse_unlike(first, second)
    if isinstance(on, ProbeSet):
        probe, name = on, NEW_BASE
    else:
        probe = visited_states(first, on, states, env=env)
        name = PRIOR if on == "prior" else NEW_BASE
    result = measure_probe(first, second, probe)
    distances = measure_predictors(Comparison(first, second, {name: probe}), expensive=expensive)
    return Measured(result.measures, distances, probe)


class Measured(dict[str, Divergence]):
    """Name -> divergence between two policies.

    Attributes:
        distances: Name -> distance of weights and activations, see `evaluation.predictors`.
        states: The observations on which the policies were compared.
    """

    def __init__(
        self, measures: Mapping[str, Divergence], distances: dict[str, float], states: ProbeSet
    ) -> None:
        super().__init__(measures)
        self.distances, self.states = distances, states

    def __repr__(self) -> str:
        numbers = {name: round(measure.mean, 6) for name, measure in self.items()}
        return f"Measured({numbers}, on {len(self.states)} states)"


def visited_states(
    policy: str | Policy, skills: str = "new", states: int = 128, *, env: EnvConfig | None = None
) -> ProbeSet:
    """Return states that a policy visits on skills, greedily, from held-out start states.

    Args:
        policy: A policy, or what `load_policy` takes.
        skills: `new` (the main new task), `prior`, or names with commas.
        states: How many (>= 1), evenly spread over all episodes.
        env: How environments are run in parallel.
    """
    loaded, settings = _load(policy), env or EnvConfig()
    tasks = chosen_skills(MAIN_TASK if skills == "new" else skills, settings.env_packages)
    environment = make_fitting_env(loaded, list(tasks.values()), settings)
    try:
        rows = held_out_rows(tasks, PROBE_EPISODES)
        record = run_episodes(environment, loaded, rows, "greedy", record="inputs").record
    finally:
        environment.close()
    return make_probe(record, states, np.arange(len(rows)))


def _load(policy: str | Policy) -> Policy:
    return load_policy(policy) if isinstance(policy, str) else policy


def _refuse_unlike(base: Policy, tuned: Policy) -> None:
    """Refuse two policies with different inputs or different actions."""

    def properties(policy: Policy) -> dict[str, object]:
        return {
            "cameras": sorted(policy.sources.image_keys),
            "state": policy.state_dim,
            "actions": (policy.chunk_size, policy.action_dim),
            "density": policy.has_density,
        }

    others = properties(tuned)
    for name, value in properties(base).items():
        if others[name] != value:
            raise PolicyError(
                f"The policies {base.name!r} and {tuned.name!r} cannot be compared: {name} "
                f"{value} against {others[name]}",
                allowed="two policies with equal inputs and actions",
            )
