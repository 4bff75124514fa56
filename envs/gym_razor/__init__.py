"""Skills on a table for a Franka Panda, as Gymnasium environments.

`gym.make("gym_razor/LiftCube-v0")` gives one environment; with
`gym.make_vec(..., vectorization_mode="vector_entry_point")` many run in parallel worker processes.
Importing this package only registers ids; MuJoCo is imported when an environment is made.
"""

from __future__ import annotations

import gymnasium as gym

PRIOR_TASKS: tuple[str, ...] = tuple(
    f"gym_razor/{name}-v0"
    for name in (
        "OpenDrawer",
        "CloseDrawer",
        "PressButton",
        "PushBlock",
        "LiftCube",
        "LiftCan",
        "LiftBottle",
        "PlaceCubeInBin",
        "PlaceBottleInBin",
        "PlaceCubeOnShelf",
    )
)
"""Ids of the skills that the base policy is trained on."""

NEW_TASKS: tuple[str, ...] = ("gym_razor/PlaceCanInBin-v0", "gym_razor/PlaceBottleOnShelf-v0")
"""Ids of the tasks that no base policy of ours has seen; the first is the main one."""


def _register() -> None:
    for role, ids in (("prior", PRIOR_TASKS), ("new", NEW_TASKS)):
        for env_id in ids:
            if env_id not in gym.registry:
                gym.register(
                    env_id,
                    entry_point="gym_razor.env:TableEnv",
                    vector_entry_point="gym_razor.vector:RazorVectorEnv",
                    kwargs={"task": env_id, "role": role},
                )


_register()
