"""From a name, a checkpoint or a hub id to a policy, and from settings to a new one.

With `flow.families`, the only module that imports LeRobot's policy API. LeRobot is imported inside
the functions, because that takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import logging
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from robo_razor.checkpoint import BEST, LAST, find_pretrained_model
from robo_razor.errors import CheckpointError, PolicyError, unknown_name
from robo_razor.flow.families import ADAPTERS, is_flow_policy
from robo_razor.flow.handle import FlowPolicyHandle
from robo_razor.flow.vlm import VLM_FOLDER, backbone, local_vlm, match_precision, missing_vlm
from robo_razor.policy_handle import PolicyHandle
from robo_razor.policy_inputs import image_key
from robo_razor.token_handle import TokenPolicyHandle

__all__ = [
    "FlowPolicyHandle",
    "PolicyHandle",
    "TokenPolicyHandle",
    "create_policy",
    "load_policy",
    "locate_policy",
    "shipped_policies",
]

logger = logging.getLogger(__name__)

POLICY_PACKAGES = ("lerobot_policy_razor",)  # Plugins that ship with this distribution.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def shipped_policies() -> dict[str, Path]:
    """Return the policies whose weights came with the installation, by name."""
    found: dict[str, Path] = {}
    for package in POLICY_PACKAGES:
        folder = Path(str(files(package).joinpath("weights")))
        if folder.is_dir():
            found |= {p.name: p for p in sorted(folder.iterdir()) if (p / CONFIG_FILE).is_file()}
    return found


def locate_policy(name_or_path: str | Path) -> Path | None:
    """Find the directory that holds a policy's files.

    Args:
        name_or_path: A shipped policy's name; a run directory (its last checkpoint is taken); a
            checkpoint, or the `pretrained_model` directory in it; or a hub id.

    Returns:
        The directory, or None if the name can only be a hub id (`owner/name`).

    Raises:
        UnknownNameError: If it is no shipped policy, no path and no hub id.
        CheckpointError: If it is a directory without a policy.
    """
    name = str(name_or_path)
    shipped = shipped_policies()
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if os.path.exists(path) or (path.parent.is_dir() and path.name in (LAST, BEST)):
        return find_pretrained_model(path)
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if is_hub_id and not path.parent.exists():
        return None
    raise unknown_name(
        "policy",
        name,
        shipped,
        remedy="It is no directory either. Give a run or checkpoint directory, or a hub id "
        "(owner/name).",
    )


def load_policy(name_or_path: str | Path, device: str = "cpu") -> PolicyHandle:
    """Load a policy with its processors, in evaluation mode.

    Args:
        name_or_path: See `locate_policy`.
        device: Torch device.

    Raises:
        UnknownNameError: If there is no such policy.
        CheckpointError: If its files are missing, truncated or do not fit together.
        PolicyError: If the hub cannot be reached, or LeRobot does not know the type of the policy.
    """
    directory = locate_policy(name_or_path)
    if directory is None:
        directory = _download(str(name_or_path))
    _register_policies()
    _check_config_file(directory)
    try:
        module, preprocessor, postprocessor = _load_from_directory(directory, device)
        handle = _make_handle(module, preprocessor, postprocessor, str(name_or_path), device)
        handle.load_extras(directory)
    except (PolicyError, CheckpointError):
        raise
    except ImportError as error:
        raise PolicyError(
            f"The policy in {directory} needs a package that is not installed: "
            f"{_first_line(error)}",
            remedy="SmolVLA, pi0 and pi0.5 need robo-razor's extra `vla`, Diffusion the extra "
            "`diffusion` (`make setup` installs both); for others install LeRobot's extra.",
        ) from error
    except Exception as error:  # LeRobot, draccus and safetensors raise all kinds.
        raise CheckpointError(
            f"The policy in {directory} cannot be loaded: {type(error).__name__}: "
            f"{_first_line(error)}",
            remedy="The checkpoint is incomplete or was made by another version; take another "
            "checkpoint of the run.",
        ) from error
    return handle


def create_policy(
    state_mean: Sequence[float],
    state_std: Sequence[float],
    *,
    camera_names: Sequence[str] = ("front", "wrist"),
    action_dim: int = 5,
    policy_type: str = "razor",
    device: str = "cpu",
    **settings: Any,
) -> PolicyHandle:
    """Build a policy with new weights from the global torch generator.

    Args:
        state_mean: Mean of the proprioceptive state over the training data [S].
        state_std: Standard deviation of it [S].
        camera_names: Cameras that the policy sees.
        action_dim: Number of action dimensions.
        policy_type: LeRobot's name of the kind of policy.
        device: Torch device.
        **settings: Fields of the policy's configuration, such as `dim_model`.
    """
    _register_policies()
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import (
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    size = settings.get("image_size", 64)
    inputs = {
        image_key(name): PolicyFeature(FeatureType.VISUAL, (3, size, size)) for name in camera_names
    }
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (len(state_mean),))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))}
    config = make_policy_config(
        policy_type, device=device, input_features=inputs, output_features=outputs, **settings
    )
    config.push_to_hub = False
    statistics = {
        "observation.state": {
            "mean": torch.tensor(list(state_mean), dtype=torch.float32),
            "std": torch.tensor(list(state_std), dtype=torch.float32),
        }
    }
    module = get_policy_class(policy_type)(config)
    preprocessor, postprocessor = make_pre_post_processors(config, dataset_stats=statistics)
    return _make_handle(module, preprocessor, postprocessor, policy_type, device)


def _make_handle(
    module: Any, preprocessor: Any, postprocessor: Any, name: str, device: str
) -> PolicyHandle:
    """Choose the handle by what the policy offers."""
    has_tokens = all(hasattr(module, part) for part in ("action_logits", "predict", "bin_centers"))
    kind: type[PolicyHandle] = TokenPolicyHandle if has_tokens else PolicyHandle
    looks = int(getattr(module.config, "n_obs_steps", 1))
    if looks > 1:
        raise PolicyError(
            f"The policy {name!r} (type {module.config.type!r}) looks at the last {looks} control "
            "steps, but environments here are looked at once per chunk of actions.",
            allowed="policies with n_obs_steps: 1",
            remedy="Train it with `--policy.n_obs_steps=1`, or choose another policy.",
        )
    coefficient = getattr(module.config, "temporal_ensemble_coeff", None)
    if coefficient is not None:
        _say_once(
            logging.WARNING,
            f"{name}: its `temporal_ensemble_coeff: {coefficient:g}` is not applied here. LeRobot "
            "averages each action over the chunks of the steps before; here it is the first of its "
            "own chunk, for `n_action_steps` is 1 with that setting.",
        )
    if is_flow_policy(module):
        kind = FlowPolicyHandle
    return kind(module.eval(), preprocessor, postprocessor, name, device)


@functools.cache  # looking through all installed distributions takes a while
def _register_policies() -> None:
    """Make LeRobot know its plugins, ours first."""
    from lerobot.utils.import_utils import register_third_party_plugins

    importlib.import_module("lerobot.policies")  # its own types are known from here on only
    for package in POLICY_PACKAGES:
        importlib.import_module(package)
    register_third_party_plugins()


def _check_config_file(directory: Path) -> None:
    """Check that the configuration is whole and of a type that LeRobot knows."""
    from lerobot.configs import PreTrainedConfig

    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        policy_type = config["type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not the configuration of a policy: {type(error).__name__}: {error}",
            remedy="Take another checkpoint of the run.",
        ) from error
    known = PreTrainedConfig.get_known_choices()
    if policy_type not in known:
        raise unknown_name(
            "policy type", policy_type, known, remedy=f"{path} asks for it; install its plugin."
        )
    if config.get("use_peft"):
        raise PolicyError(
            f"{directory} is a PEFT adapter, not a whole policy.",
            remedy="Merge the adapter into its base and save that.",
        )


def _load_from_directory(directory: Path, device: str) -> tuple[Any, Any, Any]:
    """Load module, preprocessor and postprocessor."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    _check_weights_file(directory / WEIGHTS_FILE)
    config = PreTrainedConfig.from_pretrained(directory)
    config.device = device
    if config.type in ADAPTERS and getattr(config, "compile_model", False):
        # What would be compiled is LeRobot's own sampler, which the one here replaces.
        config.compile_model = False
        _say_once(logging.INFO, f"{directory}: `compile_model` is switched off.")
    override: dict[str, dict[str, str]] = {"device_processor": {"device": device}}
    missing = missing_vlm(config, directory)
    with local_vlm(config, directory) as vlm:
        if vlm is not None:
            override["tokenizer_processor"] = {"tokenizer_name": vlm}
        try:
            module = _build(get_policy_class(config.type), directory, config)
            preprocessor, postprocessor = make_pre_post_processors(
                config, pretrained_path=str(directory), preprocessor_overrides=override
            )
        except (OSError, ValueError) as error:
            # LeRobot's pipelines raise a ValueError from what went wrong in one of their steps.
            reason = error if isinstance(error, OSError) else error.__cause__
            if missing is None or not isinstance(reason, OSError):
                raise
            raise _no_backbone(directory, missing, reason) from error
    if vlm is not None:
        match_precision(module)
        for step in preprocessor.steps:  # what is saved again names the folder that it named
            if getattr(step, "tokenizer_name", None):
                step.tokenizer_name = backbone(config)
    return module, preprocessor, postprocessor


@functools.cache  # a run loads its base twice
def _say_once(level: int, text: str) -> None:
    logger.log(level, "%s", text)


def _no_backbone(directory: Path, missing: str, error: OSError) -> PolicyError:
    """Say that a backbone's settings are missing, and how to bring them."""
    target = directory / VLM_FOLDER
    remedy = (
        f"Where there is a network, `hf download {missing} --exclude '*.safetensors'`, and copy "
        f"what it fetched to {target}."
    )
    if missing.count("/") > 1:  # a folder of another time or machine
        remedy = f"Copy that folder's settings and tokenizer to {target}."
    return PolicyError(
        f"The policy in {directory} needs the settings and the tokenizer of {missing!r}, which is "
        f"no folder here and cannot be had from the hub: {_first_line(error)}",
        remedy=remedy,
    )


def _build(policy_class: Any, directory: Path, config: Any) -> Any:
    """Return a policy with its weights.

    Raises:
        CheckpointError: If the weights do not fit.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):  # LeRobot prints where the weights come from.
        module = policy_class.from_pretrained(directory, config=config, strict=True)
    _, found, reason = printed.getvalue().partition("ould not load state dict")
    if found:  # pi0 and pi0.5 print this and go on with random weights.
        raise CheckpointError(
            f"The weights in {directory} do not fit the policy: {reason.strip(': ')[:300]}",
            remedy="Take another checkpoint, or one that this version of LeRobot wrote.",
        )
    return module


def _check_weights_file(path: Path) -> None:
    """Check that the weights are there and whole."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {WEIGHTS_FILE}.", remedy="Take another checkpoint of the run."
        )
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or damaged: {error}",
            remedy="Take another checkpoint of the run, or install the package again if it is a "
            "shipped policy.",
        ) from error


def _download(repo_id: str) -> Path:
    """Fetch a policy from the hub and return the directory of its files."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except Exception as error:  # httpx, huggingface_hub and the operating system, depending.
        shipped = ", ".join(shipped_policies()) or "(none)"
        raise PolicyError(
            f"The policy {repo_id!r} is no directory here, and it cannot be had from the hub: "
            f"{type(error).__name__}: {_first_line(error)}",
            allowed=f"shipped policies ({shipped}), run and checkpoint directories, hub ids",
            remedy="Check the spelling and the network, or bring the files: where there is a "
            f"network, `hf download {repo_id} --local-dir POLICY`, copy that folder here and give "
            "its path (`--policy POLICY`). SmolVLA, pi0 and pi0.5 also need settings and tokenizer "
            f"of their backbone in POLICY/{VLM_FOLDER}; loading names what is missing.",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
