"""Which room may use which, and why (the arrows of the layout)."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "robo_razor": ROOT / "robo_razor",
    "gym_razor": ROOT / "envs" / "gym_razor",
    "lerobot_policy_razor": ROOT / "policies" / "lerobot_policy_razor",
}

ROOMS: dict[str, frozenset[str]] = {
    # A room may use the rooms named here, itself, and nothing else of the package.
    "core": frozenset(),
    "statistics": frozenset({"core"}),
    "policies": frozenset({"core"}),
    "sweep": frozenset({"core"}),
    "report": frozenset({"statistics", "core"}),
    "rollout": frozenset({"policies", "core"}),
    "evaluation": frozenset({"rollout", "policies", "statistics", "core"}),
    "training": frozenset({"evaluation", "rollout", "policies", "core"}),
    "cli": frozenset(
        {"training", "evaluation", "rollout", "policies", "report", "sweep", "statistics", "core"}
    ),
}
"""The nine rooms of `robo_razor` and the arrows between them."""

SUITE_ROOMS: dict[str, frozenset[str]] = {
    "suite": frozenset(),
    "vector": frozenset({"suite"}),
    "adapters": frozenset({"vector", "suite"}),
}
"""The rooms of `gym_razor`. Its `__init__` only registers ids; every room may read it."""

PLUGIN = "robo_razor.lerobot_env"
"""LeRobot finds the suite's tasks under this path. It is a door from outside and uses no room."""

MAX_MODULES = 15

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
        "robo_razor.training.methods",
        ("gymnasium", "mujoco"),
        "a method sees batches, not environments",
    ),
    (
        "robo_razor.policies.flow",
        ("gymnasium", "mujoco"),
        "a sampler sees batches, not environments",
    ),
)
"""(importer, what it must not import even lazily, why)."""

CHEAP = (
    "cli.commands",
    "cli.arguments",
    "core.settings.config",
    "core.settings.conversion",
    "core.registry",
    "core.errors",
    "report.build",
    "statistics.intervals",
    "statistics.law",
    "statistics.hill",
    "sweep.run",
)
"""Modules that are imported before anything heavy is wanted."""

HEAVY = (
    "torch",
    "torchvision",
    "lerobot",
    "mujoco",
    "gymnasium",
    "robosuite",
    "scipy",
    "transformers",
    "ray",
)

ALLOWED = {
    # The plugin is imported to find the weights that ship with it.
    ("robo_razor.policies.load", "lerobot_policy_razor"),
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


@functools.cache
def imports(name: str, file: Path, *, lazy: bool = True) -> frozenset[str]:
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
    return frozenset(found)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def room(module: str) -> str:
    """Return the room of a module, empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def wrong_arrows(package: str, rooms: dict[str, frozenset[str]]) -> list[tuple[str, str]]:
    """Return (importer, imported) of all imports that no arrow allows, lazy ones too."""
    known = modules()
    return [
        (name, imported)
        for name, file in known.items()
        if name.startswith(f"{package}.") and room(name) in rooms
        for imported in sorted(imports(name, file) & known.keys())
        if imported.startswith(f"{package}.") and room(imported)
        if room(imported) != room(name) and room(imported) not in rooms[room(name)]
    ]


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


@pytest.mark.parametrize(("package", "rooms"), [("robo_razor", ROOMS), ("gym_razor", SUITE_ROOMS)])
def test_a_room_uses_only_the_rooms_below_it(package, rooms):
    broken = [
        f"{name} must not import {imported} because {room(name)}/ may use "
        f"{', '.join(sorted(rooms[room(name)])) or 'nothing'} only"
        for name, imported in sorted(wrong_arrows(package, rooms))
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("package", "rooms"), [("robo_razor", ROOMS), ("gym_razor", SUITE_ROOMS)])
def test_every_module_is_in_a_room(package, rooms):
    outside = [
        name
        for name in modules()
        if name.startswith(f"{package}.") and room(name) not in rooms
        if name != PLUGIN and not name.startswith("gym_razor.assets")
    ]
    assert not outside, f"in no room: {', '.join(outside)}"


def test_no_two_rooms_use_each_other():
    for rooms in (ROOMS, SUITE_ROOMS):
        floors = dict(rooms)
        while floors:
            free = [name for name, below in floors.items() if not below & floors.keys()]
            assert free, f"a circle among {sorted(floors)}"
            for name in free:
                del floors[name]


@pytest.mark.parametrize("package", ["robo_razor", "gym_razor"])
def test_no_modules_import_each_other_in_a_circle(package):
    """Imports inside functions do not count: they are made when all modules are there."""
    known = modules()
    below = {
        name: imports(name, file, lazy=False) & known.keys() - {name}
        for name, file in known.items()
        if is_in(name, package) and file.name != "__init__.py"
    }
    while below:
        free = [name for name, others in below.items() if not others & below.keys()]
        assert free, f"a circle among {sorted(below)}"
        for name in free:
            del below[name]


def test_no_folder_has_too_many_modules():
    folders: dict[Path, int] = {}
    for file in modules().values():
        if file.name != "__init__.py":
            folders[file.parent] = folders.get(file.parent, 0) + 1
    full = {str(path.relative_to(ROOT)): n for path, n in folders.items() if n > MAX_MODULES}
    assert not full, f"more than {MAX_MODULES} modules in {full}"


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
    "robo_razor.policies.load": "loads and makes policies",
    "robo_razor.policies.families.pi0": "builds attention masks as LeRobot's own sampler does",
    "robo_razor.policies.families.smolvla": "builds attention masks as LeRobot's own sampler does",
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


TYPED = ("policy", "base", "tuned", "env")
"""Parameters and attributes of these names have a type that the type checker follows."""


def untyped(file: Path) -> list[str]:
    """Return the parameters and attributes called as in `TYPED` that have the type `Any`, or none.

    Attributes are those with an annotation; one without takes the type of what is assigned.
    """
    broken = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        named: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            named = [
                (argument.arg, argument.annotation)
                for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs]
            ]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
            name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
            named = [(name, node.annotation)]
        broken += [
            f"{name} in line {node.lineno}"
            for name, annotation in named
            if name in TYPED and (annotation is None or "Any" in _alternatives(annotation))
        ]
    return broken


def _alternatives(annotation: ast.expr) -> set[str]:
    """Return the members of a union: {"Any", "None"} of `Any | None`."""
    if isinstance(annotation, ast.BinOp):
        return _alternatives(annotation.left) | _alternatives(annotation.right)
    return {ast.unparse(annotation)}


def test_policies_and_environments_have_types():
    still = {
        name: broken
        for name, file in modules().items()
        if not name.startswith("lerobot_policy_razor") and (broken := untyped(file))
    }
    assert not still, (
        f"give these a type (`Policy`, `VectorEnv`), so that calls are checked: {still}"
    )


def test_the_checker_sees_any(tmp_path):
    file = tmp_path / "m.py"
    file.write_text(
        "def f(policy: Any, env: Policy, *, base, other: Any) -> None:\n"
        "    self.tuned: Any | None = None\n"
        "class C:\n    env: Any\n    base: dict[str, Any]\n"
    )
    assert untyped(file) == [
        "policy in line 1",
        "base in line 1",
        "tuned in line 2",
        "env in line 4",
    ]


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
        "def f():\n    from gym_razor.suite.world import World\n"
    )
    assert "robo_razor.sibling" in imports("robo_razor.m", file)
    assert "gym_razor.suite.world" in imports("robo_razor.m", file)
    assert "gym_razor.suite.world" not in imports("robo_razor.m", file, lazy=False)
    assert "torch" not in imports("robo_razor.m", file)
    assert room("robo_razor.training.methods.ppo") == "training"
    assert set(HEAVY).isdisjoint(sys.stdlib_module_names)
