"""Checks of a policy's weights: complete, of the right type, finite, and as many as expected.

Only `model.safetensors` is read, which cannot hold code.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robo_razor.core.errors import CheckpointError
from robo_razor.core.run.directory import ADAPTER, WEIGHTS
from robo_razor.policies.files import FLOATS

logger = logging.getLogger(__name__)

INDEX = f"{WEIGHTS}.index.json"
SPARE_NUMBERS = 2**26
SPARE_TENSORS = 200
FACTOR = 4
"""Parameters of a policy while it is built, relative to its file: some types drop layers again."""
ANOTHER = "Take another checkpoint of the run."


@dataclass(frozen=True)
class WeightsHeader:
    """The header of a file of weights.

    Attributes:
        path: The file.
        kinds: Name of a tensor -> type of its numbers, as safetensors calls it.
        numbers: How many numbers all tensors have together.
    """

    path: Path
    kinds: dict[str, str]
    numbers: int


def read_header(directory: Path) -> WeightsHeader:
    """Return the header of a policy's file of weights.

    Raises:
        CheckpointError: It is missing, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / WEIGHTS
    if not path.is_file():
        raise _no_weights(directory)
    kinds: dict[str, str] = {}
    numbers = 0
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is not a mapping
                part = file.get_slice(name)
                kinds[name] = str(part.get_dtype())
                numbers += torch.Size(part.get_shape()).numel()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) is truncated or damaged: {error}",
            remedy="Take another checkpoint of the run, or install the package again if it is a "
            "shipped policy.",
        ) from error
    return WeightsHeader(path, kinds, numbers)


def _no_weights(directory: Path) -> CheckpointError:
    if (directory / INDEX).is_file():
        return CheckpointError(
            f"{directory} has no {WEIGHTS}, but weights in several files ({INDEX})",
            remedy=f"Save them as one {WEIGHTS}, as LeRobot does.",
        )
    if (directory / ADAPTER).is_file():
        return CheckpointError(
            f"{directory} has no {WEIGHTS}: it is a PEFT adapter ({ADAPTER})",
            remedy="Merge the adapter into its base and save the result.",
        )
    return CheckpointError(f"{directory} has no {WEIGHTS}.", remedy=ANOTHER)


@contextlib.contextmanager
def bounded_by(header: WeightsHeader) -> Iterator[None]:
    """Stop building a policy of far more parameters than its file holds.

    Raises:
        CheckpointError: Inside, as soon as there are too many.
    """
    limit = FACTOR * header.numbers + SPARE_NUMBERS
    count, numbers = 0, 0

    def register(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count, numbers
        if parameter is None:
            return
        count, numbers = count + 1, numbers + parameter.numel()
        if numbers > limit or count > FACTOR * len(header.kinds) + SPARE_TENSORS:
            raise CheckpointError(
                f"The settings in {header.path.with_name('config.json')} cannot be loaded: they "
                f"ask for far more parameters than the {header.numbers:,} in "
                f"{len(header.kinds)} tensors of {header.path.name}",
                remedy="The settings and the weights do not belong together: take another "
                "checkpoint of the run.",
            )

    hook = nn.modules.module.register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def plain_keys(header: WeightsHeader) -> Iterator[Path]:
    """Yield the folder of weights whose names have no prefix of torch.compile or DDP.

    It is the policy's folder, or a temporary one where names must change. The prefix stands for a
    wrapper around the module; without it the numbers are the same.
    """
    names = without_wrappers(header.kinds)
    if all(old == new for old, new in names.items()):
        yield header.path.parent
        return
    from safetensors.torch import load_file, save_file

    logger.info(
        "%s: names of weights such as %r are read without the prefix of torch.compile or DDP.",
        header.path,
        next(old for old, new in names.items() if old != new),
    )
    with tempfile.TemporaryDirectory(prefix="robo-razor-") as folder:
        tensors = load_file(header.path)
        save_file({names[key]: t for key, t in tensors.items()}, Path(folder) / WEIGHTS)
        del tensors
        yield Path(folder)


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Return old -> new name of tensors, without the parts that wrappers of a module add.

    `_orig_mod` (torch.compile) is removed anywhere; `module` (DDP) only where every name begins
    with it. Nothing is renamed where two names would become equal.
    """
    before = list(names)
    renamed = {n: ".".join(part for part in n.split(".") if part != "_orig_mod") for n in before}
    while renamed and all(new.startswith("module.") for new in renamed.values()):
        renamed = {old: new.removeprefix("module.") for old, new in renamed.items()}
    return renamed if len(set(renamed.values())) == len(before) else {n: n for n in before}


def misfit(text: str) -> str | None:
    """Return what does not fit, from torch's error on loading weights; None for other errors."""
    missing = _named(text, r"Missing key\(s\) in state_dict: ([^\n]*)")
    unexpected = _named(text, r"Unexpected key\(s\) in state_dict: ([^\n]*)")
    shape = re.search(
        r"size mismatch for (\S+): copying a param with shape torch\.Size\((.*?)\) from checkpoint,"
        r" the shape in current model is torch\.Size\((.*?)\)",
        text,
    )
    parts = [f"the file lacks {missing}"] * bool(missing)
    parts += [f"the file has {unexpected}, which the policy does not have"] * bool(unexpected)
    if shape:
        name, file, policy = shape.groups()
        others = text.count("size mismatch for ") - 1
        more = f" (and {others} more)" * bool(others)
        parts.append(f"{name!r} has the shape {file} in the file and {policy} in the policy{more}")
    return "; ".join(parts) or None


def _named(text: str, pattern: str) -> str:
    """Return the first name in a list of torch's error, and how many more it has."""
    line = re.search(pattern, text)
    names = re.findall(r'"([^"]*)"', line.group(1)) if line else []
    if not names:
        return ""
    return f"{names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def check_kinds(module: nn.Module, header: WeightsHeader) -> None:
    """Check that the file has floating-point numbers where the module has them.

    Raises:
        CheckpointError: A tensor of integers, for example, would be read as weights.
    """
    state = module.state_dict()
    names = without_wrappers(header.kinds)
    for old, kind in header.kinds.items():
        key = names[old] if names[old] in state else f"model.{names[old]}"
        if key in state and state[key].is_floating_point() and kind not in FLOATS:
            others = sum(k not in FLOATS for k in header.kinds.values()) - 1
            more = f" (and {others} more)" * bool(others)
            dtype = str(state[key].dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{header.path} has {old!r} as {kind}{more}, but the policy computes with {dtype}",
                allowed="float32, float16, bfloat16 and float64",
                remedy="The weights were quantised or damaged: " + ANOTHER[0].lower() + ANOTHER[1:],
            )


def check_finite(module: nn.Module, directory: Path) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        CheckpointError: Some are not; the error names the first tensor and how many there are.
    """
    bad = [(n, t) for n, t in module.state_dict().items() if not _is_finite(t)]
    if not bad:
        return
    name, tensor = bad[0]
    count = int((~torch.isfinite(tensor)).sum())
    more = f", and so {'is' if len(bad) == 2 else 'are'} {len(bad) - 1} more" * (len(bad) > 1)
    raise CheckpointError(
        f"The weights in {directory} are not finite: {count:,} of the {tensor.numel():,} numbers "
        f"of {name!r} are NaN or infinite{more}",
        remedy="Training diverged, or the file is damaged: take an earlier checkpoint.",
    )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is finite, in one pass and without a copy."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))
