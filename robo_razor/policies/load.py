"""Load a policy by its name, checkpoint or hub id, or make a new one from settings.

Only this module and the families of flow-matching policies import LeRobot's policy API. They import
it inside functions, because that takes seconds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from robo_razor.core.errors import CheckpointError, PolicyError, RegistryError, shown, unknown_name
from robo_razor.core.run.directory import BEST, LAST, find_pretrained_model
from robo_razor.policies.families import PolicyFamily, family_of
from robo_razor.policies.files import (
    CONFIG_FILE,
    PROCESSOR_FILES,
    check_names,
    check_processors,
    needs_code,
    read_config,
    without_remote_code,
)
from robo_razor.policies.flow.backbone_files import (
    VLM_FOLDER,
    local_vlm,
    missing_vlm,
)
from robo_razor.policies.flow.policy import FlowPolicy
from robo_razor.policies.inputs import image_key
from robo_razor.policies.normalisation import check_held_statistics
from robo_razor.policies.policy import LeRobotModule, Loaded, Policy
from robo_razor.policies.tokens import TokenPolicy
from robo_razor.policies.weights import (
    WeightsHeader,
    bounded_by,
    check_finite,
    check_kinds,
    misfit,
    plain_keys,
    read_header,
)

__all__ = [
    "FlowPolicy",
    "Policy",
    "TokenPolicy",
    "create_policy",
    "load_policy",
    "locate_policy",
    "shipped_policies",
]

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
POLICY_PACKAGES = ("lerobot_policy_razor",)
"""LeRobot plugins that ship with this distribution."""


def shipped_policies() -> dict[str, Path]:
    """Return the policies whose weights are part of the installation, by name."""
    shipped: dict[str, Path] = {}
    for package in POLICY_PACKAGES:
        folder = Path(str(files(package).joinpath("weights")))
        if folder.is_dir():
            shipped |= {p.name: p for p in sorted(folder.iterdir()) if (p / CONFIG_FILE).is_file()}
    return shipped


def locate_policy(name_or_path: str | Path) -> Path | None:
    """Find the directory that holds a policy's files.

    Args:
        name_or_path: A shipped policy's name; a run directory (its last checkpoint is taken); a
            checkpoint, or the `pretrained_model` directory in it; or a hub id.

    Returns:
        The directory, or None if the name can only be a hub id (`owner/name`).

    Raises:
        UnknownNameError: It is not a shipped policy, a path or a hub id.
        CheckpointError: It is a directory without a policy.
    """
    name = str(name_or_path)
    shipped = shipped_policies()
    if name in shipped:
        return shipped[name]
    path, exists = Path(name), False
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # the name cannot be a file's
        path = path.expanduser()
        exists = path.exists() or (path.name in (LAST, BEST) and path.parent.is_dir())
    if exists:
        return find_pretrained_model(path)
    if _HUB_ID.fullmatch(name) and not Path(name).parent.exists():
        return None
    raise unknown_name(
        "policy",
        name if len(name) < 200 else shown(name),
        shipped,
        remedy="It is not a directory either. Give a run or checkpoint directory, or a hub id "
        "(owner/name).",
    )


def load_policy(
    name_or_path: str | Path, device: str = "cpu", *, may_lack_statistics: bool = False
) -> Policy:
    """Load a policy with its processors, in evaluation mode.

    No code in its files is run. Outside of its folder only the settings and the tokenizer of a
    backbone that it names are read (see `files`).

    Args:
        name_or_path: See `locate_policy`.
        device: Torch device.
        may_lack_statistics: Accept a policy whose normalisation statistics are missing: a run
            checks them itself, since it may replace them.

    Raises:
        UnknownNameError: No such policy exists.
        CheckpointError: Its files are missing, truncated, do not fit together, name code that a
            checkpoint may not run, or hold numbers that are not finite.
        PolicyError: The hub cannot be reached, or LeRobot does not know the type of the policy.
        RegistryError: An installed package with families cannot be imported.
    """
    located = locate_policy(name_or_path)
    directory = _download(str(name_or_path)) if located is None else located
    _register_policies()
    config = read_config(directory)
    header = read_header(directory)
    check_processors(directory, config["type"])
    check_names(directory, from_hub=located is None)
    try:
        with without_remote_code():
            policy = _wrap(_load_from_directory(directory, header, str(name_or_path), device))
            policy.load_extras(directory)
    except (PolicyError, CheckpointError, RegistryError):
        raise
    except Exception as error:  # LeRobot, draccus and safetensors raise many types of errors
        raise _not_loaded(directory, error) from error
    check_kinds(policy.module, header)
    check_finite(policy.module, directory)
    check_held_statistics(policy, directory, complete=not may_lack_statistics)
    policy.try_out()
    return policy


def _not_loaded(directory: Path, error: Exception) -> PolicyError | CheckpointError:
    """Return the error of a policy that cannot be loaded, from the error that LeRobot raised."""
    if isinstance(error, ImportError):
        return PolicyError(
            f"The policy in {directory} needs a package that is not installed: "
            f"{_first_line(error)}",
            remedy="SmolVLA, pi0 and pi0.5 need robo-razor's extra `vla`, Diffusion the extra "
            "`diffusion` (`make setup` installs both). For other types install LeRobot's extra.",
        )
    if "trust_remote_code" in str(error):
        return needs_code(f"The policy in {directory}", "`trust_remote_code`")
    return CheckpointError(
        f"The policy in {directory} cannot be loaded: {misfit(str(error)) or _reason(error)}",
        remedy="The checkpoint is incomplete or was made by another version; take another "
        "checkpoint of the run.",
    )


def create_policy(
    state_mean: Sequence[float],
    state_std: Sequence[float],
    *,
    camera_names: Sequence[str] = ("front", "wrist"),
    action_dim: int = 5,
    policy_type: str = "razor",
    device: str = "cpu",
    **settings: Any,
) -> Policy:
    """Build a policy with new weights from the global torch generator.

    Args:
        state_mean: Mean of the proprioceptive state over the training data [S].
        state_std: Standard deviation of it [S].
        camera_names: Cameras that the policy reads.
        action_dim: Number of action dimensions.
        policy_type: LeRobot's name of the policy's type.
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
    family = family_of(config.type)
    return _wrap(Loaded(module, preprocessor, postprocessor, policy_type, device, family))


def _wrap(loaded: Loaded) -> Policy:
    """Return a policy of the class that its family chooses, in evaluation mode."""
    module, name = loaded.module.eval(), loaded.name
    steps = int(getattr(module.config, "n_obs_steps", 1))
    if steps > 1:
        raise PolicyError(
            f"The policy {name!r} (type {module.config.type!r}) looks at the last {steps} control "
            "steps, but here a policy gets one observation per chunk of actions",
            allowed="policies with n_obs_steps: 1",
            remedy="Train it with `--policy.n_obs_steps=1`, or choose another policy.",
        )
    coefficient = getattr(module.config, "temporal_ensemble_coeff", None)
    if coefficient is not None:
        _say_once(
            logging.WARNING,
            f"{name}: its `temporal_ensemble_coeff: {coefficient:g}` is not applied here. LeRobot "
            "averages each action over the chunks of earlier steps; here each action is the first "
            "of a new chunk, because `n_action_steps` is 1 with that setting.",
        )
    return loaded.family.wrap(loaded)


@functools.cache  # searching all installed distributions is slow
def _register_policies() -> None:
    """Register LeRobot's policy types and its plugins, those of this distribution first."""
    from lerobot.utils.import_utils import register_third_party_plugins

    importlib.import_module("lerobot.policies")  # registers LeRobot's types
    for package in POLICY_PACKAGES:
        importlib.import_module(package)
    register_third_party_plugins()


def _load_from_directory(directory: Path, header: WeightsHeader, name: str, device: str) -> Loaded:
    """Load module, preprocessor and postprocessor."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(directory)
    config.device = device
    config.pretrained_path = None  # the path at which LeRobot trained it
    config.use_peft = False  # `model.safetensors` holds all weights, merged
    family = family_of(config.type)
    backbone = family.backbone(config)
    if not family.samples_itself and getattr(config, "compile_model", False):
        # LeRobot would compile its sampler, which is replaced here.
        config.compile_model = False
        _say_once(logging.INFO, f"{directory}: `compile_model` is switched off.")
    override: dict[str, dict[str, str]] = {"device_processor": {"device": device}}
    missing = missing_vlm(backbone, directory)
    with local_vlm(config, directory) as vlm, _without_first_weights(config):
        if vlm is not None:
            override["tokenizer_processor"] = {"tokenizer_name": vlm}
        try:
            module = _build(get_policy_class(config.type), header, config, family)
            preprocessor, postprocessor = make_pre_post_processors(
                config, pretrained_path=str(directory), preprocessor_overrides=override
            )
        except (OSError, ValueError) as error:
            # LeRobot's pipelines raise a ValueError from the error of one of their steps.
            reason = error if isinstance(error, OSError) else error.__cause__
            if isinstance(reason, PolicyError):
                raise reason from error
            if missing is None or not isinstance(reason, OSError):
                raise
            raise _no_backbone(directory, missing, reason) from error
    # They are saved under their names, and a checkpoint may hold any name.
    preprocessor.name, postprocessor.name = (Path(name).stem for name in PROCESSOR_FILES)
    if vlm is not None:
        family.match_backbone(module)
        for step in preprocessor.steps:  # a saved copy names the original folder
            if getattr(step, "tokenizer_name", None):
                step.tokenizer_name = backbone
    return Loaded(module, preprocessor, postprocessor, name, device, family)


@contextlib.contextmanager
def _without_first_weights(config: Any) -> Iterator[None]:
    """Stop an image encoder from fetching pretrained weights: the policy's file has its weights."""
    name = "pretrained_backbone_weights"
    before = getattr(config, name, None)
    if before is not None:
        setattr(config, name, None)
    try:
        yield
    finally:
        if before is not None:
            setattr(config, name, before)


@functools.cache  # a run loads its base twice
def _say_once(level: int, text: str) -> None:
    logger.log(level, "%s", text)


def _no_backbone(directory: Path, missing: str, error: OSError) -> PolicyError:
    """Return the error of a missing backbone, with how to get its settings."""
    target = directory / VLM_FOLDER
    remedy = (
        f"On a machine with a network run `hf download {missing} --exclude '*.safetensors'`, and "
        f"copy the files to {target}."
    )
    if missing.count("/") > 1:  # a folder that existed earlier, or on another machine
        remedy = f"Copy that folder's settings and tokenizer to {target}."
    return PolicyError(
        f"The policy in {directory} needs the settings and the tokenizer of {missing!r}, which is "
        f"not a folder here and cannot be fetched from the hub: {_first_line(error)}",
        remedy=remedy,
    )


def _build(
    policy_class: Any, header: WeightsHeader, config: Any, family: PolicyFamily
) -> LeRobotModule:
    """Return a policy with its weights.

    Raises:
        CheckpointError: The weights do not fit.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), bounded_by(header), plain_keys(header) as folder:
        if family.builds_without_memory:
            _build_without_memory(policy_class, config)
        # LeRobot prints messages, also where it fails.
        module: LeRobotModule = policy_class.from_pretrained(folder, config=config, strict=True)
    _, is_wrong, reason = printed.getvalue().partition("ould not load state dict")
    if is_wrong:  # pi0 and pi0.5 print this and continue with random weights
        raise CheckpointError(
            f"The weights in {header.path.parent} do not fit the policy: "
            f"{misfit(reason) or reason.strip(': ')[:300]}",
            remedy="Take another checkpoint, or one that this version of LeRobot wrote.",
        )
    return module


def _build_without_memory(policy_class: Any, config: Any) -> None:
    """Build a policy of tensors without memory, to find sizes that are far too large.

    Raises:
        CheckpointError: It has far more parameters than its file.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            policy_class(copy.deepcopy(config))
    except CheckpointError:
        raise
    except Exception as error:  # not every policy can be built like this
        logger.debug("%s cannot be built without memory: %s", policy_class.__name__, error)


def _download(repo_id: str) -> Path:
    """Fetch a policy from the hub and return the directory of its files."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except Exception as error:  # of httpx, huggingface_hub or the operating system
        shipped = ", ".join(shipped_policies()) or "(none)"
        raise PolicyError(
            f"The policy {repo_id!r} is not a directory here, and it cannot be fetched from the "
            f"hub: {type(error).__name__}: {_first_line(error)}",
            allowed=f"shipped policies ({shipped}), run and checkpoint directories, hub ids",
            remedy="Check the spelling and the network. Or, on a machine with a network, run "
            f"`hf download {repo_id} --local-dir POLICY`, copy that folder here and give its path "
            "(`--policy POLICY`). SmolVLA, pi0 and pi0.5 also need settings and tokenizer of their "
            f"backbone in POLICY/{VLM_FOLDER}; loading names the files that are missing.",
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error, and that of its first cause, shortened."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    text = f"{type(error).__name__}: {_first_line(error)}"
    if first is error or _first_line(first) in text:
        return text
    return f"{text[:150]} ... {type(first).__name__}: {_first_line(first)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
