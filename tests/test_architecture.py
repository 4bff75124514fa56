"""Which module may import which, and why (the arrows of the layout)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "robo_razor": ROOT / "robo_razor",
    "gym_razor": ROOT / "envs" / "gym_razor",
    "lerobot_policy_razor": ROOT / "policies" / "lerobot_policy_razor",
}

LAYERS = (
    # A module may import modules of its own layer and of those below it. A new module that is named
    # nowhere here belongs to the middle layer.
    ("cli",),
    (
        "trainer",
        "tracking",
        "evaluation",
        "demonstrations",
        "report",
        # The parts of a report read sweeps too, so they stand beside them.
        "reporting",
        "figures",
        "markdown",
        "archive",
        "pretrain",
        "doctor",
        "catalogue",
        "arguments",
        "resumption",
        # A sweep starts `finetune` as a process and reads run directories; it imports no trainer.
        "sweep",
        "sweep_file",
        "sweep_launch",
        "sweep_plan",
        "sweep_ray",
        "sweep_schedule",
        "sweep_table",
    ),
    ("methods", "rollout", "forgetting", "checkpoint", "run_log"),
    (
        *(
            "distributions",
            "advantages",
            "statistics",
            "types",
            "registry",
            "settings",
            "strict_yaml",
            "files",
            "config",
            "config_sections",
        ),
        # The parts of `statistics`, and the law, which is a fit and knows no policy.
        *("bootstrap", "curves", "estimate", "falloff", "law", "sequential", "student"),
    ),
    ("errors",),
)
MIDDLE = 2

FORBIDDEN = (
    ("robo_razor", ("gym_razor",), "environments are reached through Gymnasium ids only"),
    (
        "robo_razor",
        ("lerobot_policy_razor",),
        "policies are reached through LeRobot's API in robo_razor.policies",
    ),
    (
        "gym_razor",
        ("torch", "lerobot", "robo_razor", "lerobot_policy_razor"),
        "the suite is for any Gymnasium user",
    ),
    (
        "lerobot_policy_razor",
        ("robo_razor", "gym_razor", "mujoco", "gymnasium"),
        "the policy is for any LeRobot user",
    ),
    (
        "robo_razor.methods",
        ("gymnasium", "mujoco"),
        "a method sees batches, not environments",
    ),
    (
        "robo_razor.flow",
        ("gymnasium", "mujoco"),
        "a sampler sees batches, not environments",
    ),
)
"""(importer, what it must not import even lazily, why)."""

CHEAP = (
    "cli",
    "arguments",
    "config",
    "settings",
    "registry",
    "errors",
    "report",
    "statistics",
    "law",
    "falloff",
    "sweep",
)
"""Modules that are imported before anything heavy is wanted."""

HEAVY = (
    "torch",
    "torchvision",
    "lerobot",
    "mujoco",
    "gymnasium",
    "robosuite",
    "transformers",
    "ray",
)

ALLOWED = {
    # The plugin is imported to find the weights that ship with it.
    ("robo_razor.policies", "lerobot_policy_razor"),
}


def modules() -> dict[str, Path]:
    """Return dotted name -> file of every module in the repository's packages."""
    found = {}
    for package, directory in PACKAGES.items():
        for file in sorted(directory.rglob("*.py")):
            parts = [package, *file.relative_to(directory).with_suffix("").parts]
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join(parts)] = file
    return found


def imports(name: str, file: Path, *, lazy: bool = True) -> set[str]:
    """Return the dotted names that a module imports, those for type checking left out.

    Args:
        name: The module's own dotted name.
        file: Its source.
        lazy: Whether imports inside functions count.
    """
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(absolute(node))
        for child in ast.iter_child_nodes(node):
            visit(child)

    def absolute(node: ast.ImportFrom) -> list[str]:
        base = node.module or ""
        if node.level:
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = f"{package}.{base}".rstrip(".")
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(module: str) -> int:
    part = module.split(".")[1]
    return next((i for i, names in enumerate(LAYERS) if part in names), MIDDLE)


@pytest.mark.parametrize(("importer", "targets", "why"), FORBIDDEN)
def test_packages_stay_apart(importer, targets, why):
    broken = [
        f"{name} must not import {target} because {why}"
        for name, file in modules().items()
        if is_in(name, importer)
        for target in targets
        if (name, target) not in ALLOWED
        if any(is_in(imported, target) for imported in imports(name, file))
    ]
    assert not broken, "\n".join(broken)


def test_arrows_point_down():
    known = modules()
    broken = []
    for name, file in known.items():
        if not name.startswith("robo_razor."):
            continue
        for imported in sorted(imports(name, file) & known.keys()):
            if imported.startswith("robo_razor.") and layer(imported) < layer(name):
                broken.append(
                    f"{name} must not import {imported} because "
                    f"{'/'.join(LAYERS[layer(imported)])} stand above it"
                )
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("module", CHEAP)
def test_cheap_modules_import_nothing_heavy(module):
    """Follow top-level imports through the package, as Python does."""
    known = modules()
    seen: set[str] = set()
    queue = [f"robo_razor.{module}", "robo_razor"]
    while queue:
        name = queue.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        found = imports(name, known[name], lazy=False)
        heavy = sorted({item.split(".")[0] for item in found} & set(HEAVY))
        assert not heavy, (
            f"robo_razor.{module} must not import {', '.join(heavy)} (through {name}) because it "
            "is needed before anything heavy is wanted"
        )
        queue.extend(item for item in found if item.startswith("robo_razor"))


POLICY_IMPORTERS = {
    "robo_razor.policies": "loads and makes policies",
    "robo_razor.flow.families": "builds attention masks as LeRobot's own samplers do",
}
"""Which module may import LeRobot's policy API, and what for."""


def test_lerobot_policies_are_known_to_few():
    broken = [
        f"{name} must not import lerobot.policies because only {', '.join(POLICY_IMPORTERS)} do"
        for name, file in modules().items()
        if name.startswith("robo_razor.") and name not in POLICY_IMPORTERS
        if any(is_in(imported, "lerobot.policies") for imported in imports(name, file))
    ]
    assert not broken, "\n".join(broken)


def test_folders_are_no_packages():
    for folder in ("envs", "policies"):
        assert not (ROOT / folder / "__init__.py").exists(), (
            f"{folder}/ must hold no __init__.py because a top-level package of that name is "
            "overwritten by other distributions"
        )


def test_the_checker_sees_imports(tmp_path):
    file = tmp_path / "m.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom . import sibling\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    from gym_razor.world import World\n"
    )
    assert "robo_razor.sibling" in imports("robo_razor.m", file)
    assert "gym_razor.world" in imports("robo_razor.m", file)
    assert "gym_razor.world" not in imports("robo_razor.m", file, lazy=False)
    assert "torch" not in imports("robo_razor.m", file)
    assert layer("robo_razor.methods.ppo") == MIDDLE
    assert set(HEAVY).isdisjoint(sys.stdlib_module_names)
