"""Skills on a table for a Franka Panda, as Gymnasium environments.

`gym.make("gym_razor/LiftCube-v0")` gives one environment; with
`gym.make_vec(..., vectorization_mode="vector_entry_point")` many run in parallel worker processes.
Importing this package only registers ids; MuJoCo is imported when an environment is made.
"""

from __future__ import annotations

import gymnasium as gym

from gym_razor.adapters.robosuite import register_robosuite_tasks

TIME_LIMITS: dict[str, dict[str, int]] = {
    "prior": {
        "OpenDrawer": 60,
        "CloseDrawer": 60,
        "PressButton": 40,
        "PushBlock": 64,
        "LiftCube": 48,
        "LiftCan": 48,
        "LiftBottle": 48,
        "PlaceCubeInBin": 80,
        "PlaceBottleInBin": 80,
        "PlaceBlockInBin": 80,
        "PlaceCubeOnShelf": 80,
        "PlaceBottleOnShelf": 80,
    },
    "new": {"PlaceCanInBin": 80, "PlaceCanOnShelf": 80},
}
"""Per role and task the time limit in control steps of 0.1 s."""


def _ids(role: str) -> tuple[str, ...]:
    return tuple(f"gym_razor/{name}-v0" for name in TIME_LIMITS[role])


PRIOR_TASKS = _ids("prior")
"""Ids of the skills that the base policy is trained on."""

NEW_TASKS = _ids("new")
"""Ids of the tasks that no base policy of ours has seen; the first is the main one."""


def _register() -> None:
    for role, limits in TIME_LIMITS.items():
        for env_id, limit in zip(_ids(role), limits.values(), strict=True):
            if env_id not in gym.registry:
                gym.register(
                    env_id,
                    max_episode_steps=limit,
                    entry_point="gym_razor.suite.env:TableEnv",
                    vector_entry_point="gym_razor.vector.tables:RazorVectorEnv",
                    kwargs={"task": env_id, "role": role},
                )


_register()
register_robosuite_tasks()
