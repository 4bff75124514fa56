"""A checkpoint: configuration, weights, statistics and the steps around the policy."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import damage, values
from fuzz.place import Attempt, Fault, Folder, Place, copied, some

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
FILES = ("config.json", "model.safetensors", PREPROCESSOR, POSTPROCESSOR)
CODE = (
    (values.TRAP, {}),
    (values.TRAP, {"args": ["x"]}),
    ("subprocess.Popen", {"args": ["touch", "evil"]}),
    ("os.system", {"command": "touch evil"}),
    ("os.mkdir", {"path": "../outside/evil"}),
    ("shutil.copy", {"src": "../outside/secret.txt", "dst": "evil"}),
    ("torch.load", {"f": "../outside/secret.txt"}),
    ("importlib.import_module", {"name": "fuzz.trap"}),
)
"""What runs at once where a class is made before it is checked."""
CLASSES = (
    values.TRAP,
    "os.system",
    "builtins.exec",
    "fuzz.trap",
    "lerobot.processor.pipeline.DataProcessorPipeline",
    "lerobot.processor.RenameObservationsProcessorStep",
    "lerobot_policy_razor.processor_razor.nothing",
    ".",
    "",
    "x",
    5,
    None,
)
STATES = (
    "../../outside/secret.safetensors",
    "../outside/secret.safetensors",
    "/etc/passwd",
    "model.safetensors",
    "config.json",
    "nowhere.safetensors",
    ".",
    "",
    "sub/x.safetensors",
    5,
    None,
    ["a"],
)


class Checkpoint(Place):
    """A policy's folder, which is loaded and acts once."""

    name = "checkpoint"

    @staticmethod
    def prepare(templates: Path) -> None:
        """Save a tiny policy."""
        from toy_policy import save_tiny_policy

        save_tiny_policy(templates / "policy")

    def valid(self, folder: Folder) -> Callable[[], None]:
        """Load the policy."""
        return lambda: act(self.templates / "policy")

    def make(self, rng: random.Random, folder: Folder) -> Attempt:
        """Damage a policy's folder, or what leads to it."""
        place = folder.given / rng.choice(("policy", "run/checkpoints/000003/pretrained_model"))
        place.parent.mkdir(parents=True, exist_ok=True)
        copied(self.templates / "policy", place)
        words = [spoil(rng, place, folder) for _ in range(some(rng))]
        named = place
        if place.name != "policy":
            named = folder.given / "run"
            words.append(links(rng, named / "checkpoints"))
        return Attempt(
            ", ".join(words), lambda: act(named), f"robo-razor evaluate --policy {named}"
        )


def spoil(rng: random.Random, policy: Path, folder: Folder) -> str:
    """Damage one file of a policy."""
    if rng.random() < 0.35:
        return _steps(rng, policy / rng.choice((PREPROCESSOR, PREPROCESSOR, POSTPROCESSOR)))
    states = sorted(path.name for path in policy.glob("policy_*.safetensors"))
    file = policy / rng.choice((*FILES, *states, "config.json", "model.safetensors"))
    return damage.of_file(rng, file, folder.linked)


def _steps(rng: random.Random, file: Path) -> str:
    """Let the file of a pipeline name other steps, classes or files of state."""
    if not file.is_file() or file.is_symlink():
        return f"{file.name} as it is"
    try:
        data = json.loads(file.read_bytes())
        steps = data["steps"]
        step = rng.choice(steps)
    except (ValueError, TypeError, KeyError, IndexError):
        return f"{file.name} as it is"
    act = rng.randrange(6)
    if act in (0, 5):
        foreign = _foreign(rng)
        steps.insert(rng.randrange(len(steps) + 1), foreign)
        words = f"step {foreign}"
    elif act == 1:
        step.pop("registry_name", None)
        step["class"] = rng.choice(CLASSES)
        words = f"class {step['class']!r}"
    elif act == 2:
        step["state_file"] = rng.choice(STATES)
        words = f"state_file {step['state_file']!r} of {step.get('registry_name')}"
    elif act == 3:
        steps.insert(0, {"registry_name": _registered(rng), "config": _settings(rng)})
        words = f"step {steps[0]}"
    else:
        step["config"], word = values.damaged(rng, step.get("config") or {})
        words = f"{step.get('registry_name')}: {word}"
    file.write_bytes(values.to_json(data).encode("utf-8", "surrogatepass"))
    return f"{file.name}: {words[:200]}"


def _foreign(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.6:
        name, settings = rng.choice(CODE)
        return {"class": name, "config": settings}
    return {"class": rng.choice(CLASSES), "config": _settings(rng)}


def _settings(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        (
            {},
            {"args": ["touch", "evil"]},
            {"rename_map": {"observation.state": "observation.other"}},
            {"tokenizer_name": "../../outside"},
            {"tokenizer_name": "hub/some-model", "trust_remote_code": True},
            {"device": "cuda:7"},
            {"device": "meta"},
            {"float_dtype": "float16"},
        )
    )


def _registered(rng: random.Random) -> str:
    from lerobot.processor import ProcessorStepRegistry

    return rng.choice(sorted(ProcessorStepRegistry.list()))


def links(rng: random.Random, checkpoints: Path) -> str:
    """Let `last` and `best` be links, text, folders, or nothing."""
    words = []
    target = "000003"
    for name in ("last", "best"):
        link = checkpoints / name
        damage.remove(link)
        act = rng.randrange(9)
        if act <= 2:
            link.symlink_to(target)
        elif act == 3:
            link.write_text(rng.choice((target, "", "../../x", "\x00", "3" * 300)))
        elif act == 4:
            copied(checkpoints / target, link)
        elif act == 5:
            link.symlink_to(rng.choice(("000099", "../../..", "/etc", "last", "x" * 200, "best")))
        elif act == 6:
            link.mkdir()
        elif act == 7:
            link.symlink_to((checkpoints / target).absolute())
        words.append(f"{name}: {act}")
    return ", ".join(words)


def act(policy: Path) -> None:
    """Load a policy and let it act once; numbers that are none must have been refused."""
    import torch

    from robo_razor.policies.load import load_policy

    handle = load_policy(policy)
    observation = {
        "pixels": {name: np.zeros((1, 16, 16, 3), np.uint8) for name in ("front", "wrist")},
        "agent_pos": np.zeros((1, handle.state_dim), np.float32),
    }
    handle.check_env(*_spaces())
    actions = handle.act(observation, ["lift the red block"])
    finite = bool(np.isfinite(actions).all())
    if handle.has_density:
        found = handle.distribution(handle.prepare(observation, ["lift the red block"]))
        finite = finite and not bool(torch.isnan(found.log_probs).any())
    if not finite:
        raise Fault("a policy whose output is not finite was accepted")


def _spaces() -> tuple[Any, Any]:
    from gymnasium import spaces

    image = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    state = spaces.Box(-np.inf, np.inf, (7,), np.float32)
    pixels = spaces.Dict({"front": image, "wrist": image})
    observation = spaces.Dict({"pixels": pixels, "agent_pos": state})
    return observation, spaces.Box(-1, 1, (5,), np.float32)
