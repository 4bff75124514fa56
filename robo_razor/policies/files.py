"""The JSON files of a policy, checked before LeRobot reads them, so that they run no code.

LeRobot's pipelines import any class that a `policy_preprocessor.json` names and call it, and some
of its policies run code from repositories of the hub. So a step must have a name that LeRobot, a
LeRobot plugin or this package registered, a state file must be a plain name in the policy's folder,
and code that is not installed is never run. A file may also name a repository of the hub or, where
the policy itself is a local folder, the folder of its backbone's settings.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from robo_razor.core.errors import CheckpointError, PolicyError, shown, unknown_name
from robo_razor.core.files import parse_json, read_json, read_text
from robo_razor.core.run.directory import ADAPTER

CONFIG_FILE = "config.json"
PROCESSOR_FILES = ("policy_preprocessor.json", "policy_postprocessor.json")
BACKBONE_FILES = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Files of a backbone's folder that can name code to run (`auto_map`)."""
REFUSED_STEPS = {
    "reward_classifier_processor": "it loads another model from a path in the file",
    "action_tokenizer_processor": "it runs the code of a repository of the hub",
}
"""Registered name -> why a checkpoint may not use this step of LeRobot's."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of number, under safetensors' names, that weights and statistics may have."""
STATISTICS = ("mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")
MAX_STEPS = 64
MAX_FEATURES = 64
MAX_SIDE = 2**14
LIMITS = {
    **dict.fromkeys(("chunk_size", "n_action_steps", "horizon", "n_obs_steps"), 10_000),
    **dict.fromkeys(("num_inference_steps", "num_steps", "num_train_timesteps"), 10_000),
    **dict.fromkeys(("tokenizer_max_length", "max_instruction_tokens", "max_length"), 2**16),
    **dict.fromkeys(("max_state_dim", "max_action_dim"), 2**16),
    **dict.fromkeys(("resize_imgs_with_padding", "image_resolution", "resize_shape"), MAX_SIDE),
    **dict.fromkeys(("crop_shape", "image_size"), MAX_SIDE),
}
"""Setting -> its largest sensible value; far larger ones fill the memory, or never end."""
REMEDY = "Take another checkpoint, from a source that you trust."

_NAMES = re.compile(r"(name|path|id|dir|folder|file|model|weights|checkpoint|tokenizer)$")
_UNUSED_NAMES = ("pretrained_path", "repo_id")
"""Paths and ids that LeRobot writes into every configuration, but loading does not read."""
_PLAIN = re.compile(r"[\w.+ -]{1,200}")


def read_config(directory: Path) -> dict[str, Any]:
    """Return the configuration of a policy after checking its type and sizes.

    Raises:
        CheckpointError: It is damaged, or a size is far too large.
        UnknownNameError: LeRobot does not know the type.
        PolicyError: It is an adapter, not a complete policy.
    """
    from lerobot.configs import PreTrainedConfig

    path = directory / CONFIG_FILE
    config, problem = None, "it names no `type`"
    try:
        config = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        problem = f"it is damaged or not JSON ({error})"
    policy_type = config.get("type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(policy_type, str):
        raise CheckpointError(
            f"{path} is not the configuration of a policy: {problem}",
            remedy="Take another checkpoint of the run.",
        )
    known = PreTrainedConfig.get_known_choices()
    if policy_type not in known:
        name = policy_type if len(policy_type) < 100 else shown(policy_type)
        raise unknown_name(
            "policy type", name, known, remedy=f"{path} names it; install its plugin."
        )
    if config.get("use_peft") and (directory / ADAPTER).is_file():
        raise PolicyError(
            f"{directory} is a PEFT adapter ({ADAPTER}), not a complete policy",
            remedy="Merge the adapter into its base and save the result.",
        )
    _check_code(path, config)
    _check_features(path, config)
    _check_sizes(path, config)
    return config


def check_processors(directory: Path, policy_type: str) -> None:
    """Check that a policy's two pipelines use known steps and files of the policy's folder only.

    Args:
        directory: The policy's folder.
        policy_type: LeRobot's name of its type; the steps of its package are allowed.

    Raises:
        CheckpointError: They use others.
    """
    allowed = allowed_steps(policy_type)
    for name in PROCESSOR_FILES:
        path = directory / name
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a file", remedy=REMEDY)
        if not path.exists():
            continue  # LeRobot's error names what is missing, and how to migrate an old policy
        pipeline = read_json(path, "Take another checkpoint of the run.")
        steps = pipeline.get("steps") if isinstance(pipeline, dict) else None
        if not isinstance(steps, list) or len(steps) > MAX_STEPS:
            raise CheckpointError(
                f"{path} cannot be loaded: it is not a processor pipeline",
                allowed=f"an object with a list `steps` of at most {MAX_STEPS}",
                remedy="Take another checkpoint of the run.",
            )
        _check_code(path, pipeline)
        if not isinstance(pipeline.get("name", ""), str):
            raise CheckpointError(f"{path}: `name` is not text", remedy=REMEDY)
        for index, step in enumerate(steps):
            _check_step(f"step {index} of {path}", step, allowed, directory)


def allowed_steps(policy_type: str) -> dict[str, type]:
    """Return the steps that a checkpoint may use, by registered name and full class name.

    They come from LeRobot's processor package, the policy's package, and installed plugins.
    """
    import lerobot.processor
    from lerobot.configs import PreTrainedConfig
    from lerobot.processor import ProcessorStep, ProcessorStepRegistry

    _import_processors(PreTrainedConfig.get_choice_class(policy_type))
    package = PreTrainedConfig.get_choice_class(policy_type).__module__.rpartition(".")[0]
    allowed: dict[str, type] = {}
    for name in ProcessorStepRegistry.list():
        step: type = ProcessorStepRegistry.get(name)
        places = ("lerobot.processor.", f"{package}.", "lerobot_policy_")
        if name in REFUSED_STEPS or not issubclass(step, ProcessorStep):
            continue
        if f"{step.__module__}.".startswith(places):
            allowed |= {name: step, f"{step.__module__}.{step.__qualname__}": step}
            if getattr(lerobot.processor, step.__name__, None) is step:
                allowed[f"lerobot.processor.{step.__name__}"] = step
    return allowed


def _import_processors(config_class: type) -> None:
    """Register the steps of a policy's package: LeRobot imports their module only on demand."""
    import importlib

    module = config_class.__module__.replace("configuration_", "processor_")
    with contextlib.suppress(ImportError):  # not every policy's package has steps
        importlib.import_module(module)


def _check_step(where: str, step: Any, allowed: dict[str, type], directory: Path) -> None:
    if not isinstance(step, dict) or not isinstance(step.get("config", {}), dict):
        raise CheckpointError(f"{where} is not an object with a `config`", remedy=REMEDY)
    kind = "registry_name" if "registry_name" in step else "class"
    name = step.get(kind)
    if not isinstance(name, str) or name not in allowed:
        reason = REFUSED_STEPS.get(name, "") if isinstance(name, str) else ""
        raise CheckpointError(
            f"{where} names the {'step' if kind == 'registry_name' else 'class'} {shown(name)}, "
            f"which a checkpoint may not load{reason and f': {reason}'}. None of its code was run",
            allowed="steps that LeRobot or an installed plugin registered by name, such as "
            "'normalizer_processor'",
            remedy=REMEDY + " For your own step, install a plugin: a package `lerobot_policy_NAME` "
            "that registers it.",
        )
    if kind == "registry_name" and "." in name:
        raise CheckpointError(f"{where} gives a class as a registered name", remedy=REMEDY)
    _check_sizes(where, step.get("config", {}))
    if "state_file" in step:
        _check_state_file(where, step["state_file"], directory)


def _check_state_file(where: str, name: Any, directory: Path) -> None:
    if name is None or not isinstance(name, str) or not is_plain_name(name):
        raise CheckpointError(
            f"{where} reads the state file {shown(name)}, which is not a plain name",
            allowed="the name of a .safetensors file in the policy's folder, without a path",
            remedy=REMEDY,
        )
    if not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{where} reads the state file {shown(name)}",
            allowed="files that end with .safetensors",
            remedy=REMEDY,
        )
    if not (directory / name).is_file():
        raise CheckpointError(
            f"{where} reads the state file {name!r}, which {directory} does not have",
            remedy="The copy of the policy is incomplete: copy the whole folder, or take another "
            "checkpoint.",
        )
    _check_state(directory / name)


def _check_state(path: Path) -> None:
    """Check that a step's state file can be read, and that statistics are floating-point."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kinds = {key: str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or damaged: {error}",
            remedy="Take another checkpoint of the run.",
        ) from error
    for key, kind in kinds.items():
        if key.rpartition(".")[2] in STATISTICS and kind not in FLOATS:
            raise CheckpointError(
                f"{path} has {shown(key)} as {kind}",
                allowed="statistics in float32 (or float64, float16, bfloat16)",
                remedy="Take another checkpoint, or compute the statistics again and save it.",
            )


def is_plain_name(name: str) -> bool:
    """Return whether a name in a file is that of a file in the same folder, not a path."""
    return _PLAIN.fullmatch(name) is not None and name.strip(". ") != ""


def check_names(directory: Path, from_hub: bool) -> None:
    """Check that a policy's files name only repositories of the hub, or a backbone's folder.

    Args:
        directory: The policy's folder.
        from_hub: Whether it was fetched from the hub; then it must not name a folder of this
            machine.

    Raises:
        CheckpointError: They name a file, or a path outside of the policy's folder.
    """
    from robo_razor.policies.flow.backbone_files import VLM_FOLDER, check_links

    backbone = directory / VLM_FOLDER
    check_links(backbone)
    for file in (CONFIG_FILE, *PROCESSOR_FILES):
        path = directory / file
        if not path.is_file():
            continue
        data = read_json(path)  # a pipeline's name is not a path
        for key, name in _names(data if file == CONFIG_FILE else data["steps"]):
            replaced = backbone.is_dir() and key in ("vlm_model_name", "tokenizer_name")
            if not replaced:
                _check_name(f"`{key}` in {path}", name, from_hub)
    for file in BACKBONE_FILES:
        if (backbone / file).is_file():
            _check_code(backbone / file, read_json(backbone / file))


def _names(value: Any) -> Iterator[tuple[str, str]]:
    """Yield key and text of every nested JSON entry that may name a path or a repository."""
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, list):
            todo += part
        if not isinstance(part, dict):
            continue
        for key, item in part.items():
            if isinstance(item, str) and _NAMES.search(key) and key not in _UNUSED_NAMES:
                yield key, item
            elif isinstance(item, dict | list):
                todo.append(item)


def _check_name(where: str, name: str, from_hub: bool) -> None:
    is_path = name.startswith(("/", "~", ".")) or "\\" in name or "://" in name
    is_path = is_path or ".." in name.split("/") or name.count("/") > 1
    if not is_path:
        return
    leads_away = name.startswith("~") or ".." in name.split("/") or "://" in name
    leads_away = leads_away or "\\" in name or "\0" in name
    if not leads_away and len(name) < 1000:
        folder = Path(name)
        if not from_hub and (folder.is_dir() or not folder.exists()):
            return  # settings and a tokenizer; a missing folder is reported when it is read
    raise CheckpointError(
        f"{where} names {shown(name)}, which is outside of the policy's folder",
        allowed="a repository of the hub (owner/name)"
        + ("" if from_hub else ", or the folder of a backbone's settings and tokenizer"),
        remedy="If you trust it, copy the backbone's settings and tokenizer into the policy's "
        "folder, as `vlm`.",
    )


def _check_code(path: Path, value: Any) -> None:
    """Refuse JSON that makes transformers import code of a repository."""
    todo = [value]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            if part.get("auto_map"):
                raise needs_code(str(path), f"`auto_map`: {shown(part['auto_map'])}")
            todo += [item for item in part.values() if isinstance(item, dict | list)]
        elif isinstance(part, list):
            todo += [item for item in part if isinstance(item, dict | list)]


def _check_features(path: Path, config: dict[str, Any]) -> None:
    """Check the shapes of inputs and outputs: whole numbers that an array can have."""
    for part in ("input_features", "output_features"):
        features = config.get(part) or {}
        if not isinstance(features, dict) or len(features) > MAX_FEATURES:
            raise CheckpointError(
                f"`{part}` in {path} cannot be loaded: it is not an object of up to {MAX_FEATURES} "
                "features",
                remedy="Take another checkpoint.",
            )
        for key, feature in features.items():
            shape = feature.get("shape") if isinstance(feature, dict) else None
            is_shape = isinstance(shape, list) and 0 < len(shape) <= 4
            if not is_shape or not all(_is_size(side, MAX_SIDE) for side in shape or ()):
                raise CheckpointError(
                    f"{shown(key)} of `{part}` in {path} cannot be loaded: its shape is "
                    f"{shown(shape)}",
                    allowed=f"one to four whole numbers from 1 to {MAX_SIDE}",
                    remedy="Take another checkpoint.",
                )


def _is_size(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest


def _check_sizes(where: Path | str, config: dict[str, Any]) -> None:
    """Check counts and lengths that would fill the memory, or never end, if they were too large."""
    for key, largest in LIMITS.items():
        setting = config.get(key)
        for value in setting if isinstance(setting, list) else [setting]:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and not _is_size(value, largest):
                raise CheckpointError(
                    f"`{key}` in {where} cannot be loaded: it is {shown(setting)}",
                    allowed=f"whole numbers from 1 to {largest}",
                    remedy="Take another checkpoint.",
                )
    chunk, executed = config.get("chunk_size"), config.get("n_action_steps")
    if isinstance(chunk, int) and isinstance(executed, int) and executed > chunk:
        raise CheckpointError(
            f"`n_action_steps` in {where} cannot be loaded: it is {executed}, but a chunk has "
            f"{chunk} actions (`chunk_size`)",
            remedy=f"Set it to {chunk} or less, or take another checkpoint.",
        )


def needs_code(what: str, how: str) -> PolicyError:
    """Return the error of a policy that would run code of a repository."""
    return PolicyError(
        f"{what} needs code that is not installed here ({how}). None of it was run",
        allowed="policies and tokenizers whose code is in LeRobot, transformers or an installed "
        "plugin",
        remedy="Take another policy, or install the code as a LeRobot plugin.",
    )


@contextlib.contextmanager
def without_remote_code() -> Iterator[None]:
    """Forbid transformers to run code of a repository, even where a LeRobot policy allows it."""
    try:
        from transformers import dynamic_module_utils as loader
    except ImportError:
        yield
        return

    def refuse(*arguments: Any, **_: Any) -> NoReturn:
        module = arguments[1] if len(arguments) > 1 else ""
        raise needs_code("The policy", f"the module {shown(module)}")

    replaced: dict[str, Any] = {
        "get_cached_module_file": refuse,
        "get_class_in_module": refuse,
        "TIME_OUT_REMOTE_CODE": 0,  # otherwise it asks on the terminal and waits for an answer
    }
    before = {name: getattr(loader, name) for name in replaced}
    for name, value in replaced.items():
        setattr(loader, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(loader, name, value)
