"""Settings of every command, with their defaults; their sections are in `sections`.

The line under each field is its help on the command line. Ranges are checked when an object is
built, whatever it is built from (flags, YAML, Python). Nothing heavy is imported here: no torch,
mujoco or lerobot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from robo_razor.core.errors import ConfigError, did_you_mean, shown
from robo_razor.core.plugins import METHODS, REGULARISERS, load_plugins
from robo_razor.core.settings.conversion import (
    Settings,
    as_section,
    build,
    describe_fields,
    from_dict,
    load_yaml,
    mapping,
    path,
    read_yaml,
    replace,
    setting,
    to_dict,
    to_yaml,
)
from robo_razor.core.settings.sections import (
    POLICY_PREFIX,
    CheckpointConfig,
    EnvConfig,
    FlowConfig,
    MethodSettings,
    PackagesConfig,
    RegulariserSettings,
    TrackingConfig,
    check_modules,
)

__all__ = [
    "POLICY_PREFIX",
    "ArchiveConfig",
    "CheckpointConfig",
    "CollectConfig",
    "CompareConfig",
    "EnvConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "FlowConfig",
    "ListConfig",
    "ManifestConfig",
    "MethodSettings",
    "PackagesConfig",
    "PretrainConfig",
    "RegulariserSettings",
    "RolloutConfig",
    "Settings",
    "SweepConfig",
    "TrackingConfig",
    "describe_fields",
    "from_dict",
    "load_yaml",
    "read_yaml",
    "replace",
    "to_dict",
    "to_yaml",
]

HELD_OUT_SEED = 1_000_000
"""Start states with seeds from here on are never trained on; results are reported on them."""
VALIDATION_SEED = 1_000_000_000
"""Start states with seeds from here on are never trained on either; settings may be chosen by them.
"""
MAX_SEED = 2**31 - 1
"""Largest seed: environments may pass it, plus a row's number, to generators of 32 bits."""

MAIN_TASK = "gym_razor/PlaceCanInBin-v0"
DEFAULT_METHOD = "ppo"


def import_plugins(names: Any) -> None:
    """Import the modules of the setting `plugins`, one name or several; other values are ignored.

    Raises:
        ConfigError: A module cannot be imported, or is a part of Python.
    """
    listed = names if isinstance(names, list | tuple) else [names]
    texts = tuple(name for name in listed if isinstance(name, str))
    check_modules("plugins", texts, "nothing here", "modules that are installed or in PYTHONPATH")
    load_plugins(texts)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Settings):
    """Fine-tune a policy on a new task and measure at every checkpoint what it forgets."""

    # A name until a config is built: no method is imported before, and a plugin may define it.
    method: MethodSettings = setting(cast("MethodSettings", DEFAULT_METHOD), main=True)  # noqa: RUF009
    """How to fine-tune; `robo-razor list methods` shows them."""
    policy: str = path("razor-base", or_name=True, main=True)
    """Base policy: `razor-base`, a run or checkpoint directory, or a hub id."""
    task: str = setting(MAIN_TASK, main=True)
    """The new task: a Gymnasium id, a skill's name, or LeRobot's `lerobot:TYPE/TASK`."""
    rename: str = mapping()
    """Map the environment's keys to the policy's: '{observation.images.top: observation.image}'."""
    prior_tasks: str = setting("prior", main=True)
    """Skills that may be forgotten: `prior` (all of them), `none`, or names with commas."""
    out: str | None = path(None, main=True)
    """Run directory to create; None: a fresh one under `runs/`."""
    resume: bool | Literal["auto"] = setting(False, main=True)
    """Go on with the run in `out` from its last checkpoint; `auto`: begin it if there is none."""
    seed: int = setting(0, low=0, high=HELD_OUT_SEED - 1, main=True)
    """Seed of start states, sampling and initialisation."""
    freeze_vision: bool = True
    """Keep the image encoder as it is in the base, where the policy has one."""
    log: tuple[str, ...] = ("tensorboard",)
    """Where metrics are written besides `metrics.jsonl`: names of sinks, see `core/sinks/`."""
    device: str = "auto"
    """Torch device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    torch_threads: int | None = setting(None, low=1, high=1024)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""
    tracking: TrackingConfig = TrackingConfig()
    """What is measured at step 0 and at every checkpoint."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Which checkpoints stay on disk."""
    flow: FlowConfig = FlowConfig()
    """How a flow-matching policy (SmolVLA, pi0, pi0.5) is sampled and trained."""
    regularise: tuple[RegulariserSettings, ...] = ()
    """Terms that hold the policy near its base: `kl`, `l2`, ..., each with a section of its own."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first: they may register methods and regularisers."""

    def __post_init__(self) -> None:
        """Import the plugins, and find the method where only its name is given."""
        if isinstance(self.method, str):
            import_plugins(self.plugins)  # one of them may define the method
            object.__setattr__(self, "method", _method_class(self.method)())
        super().__post_init__()

    def _check_together(self) -> None:
        import_plugins(self.plugins)
        names = [term.name for term in self.regularise]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(
                f"`regularise` has {twice[0]!r} twice", remedy="Leave one of them out."
            )
        if self.resume and self.out is None:
            raise ConfigError(
                "`resume` is set but `out` is not: there is no run to go on with",
                remedy="Name the run directory: `robo-razor finetune --resume --out runs/NAME`.",
            )

    # In a file the method is a name beside a section of that name, and terms are sections too.

    @classmethod
    def sections(cls) -> dict[str, type[Settings]]:
        """Return the sections of all methods and regularisers."""
        return {
            kind.SECTION: kind
            for registry in (METHODS, REGULARISERS)
            for kind in map(registry.get, registry)
        }

    @classmethod
    def keys_beside(cls, data: Mapping[str, Any]) -> list[str]:
        """Return all keys except those of methods that are not chosen."""
        others = set(METHODS) - {data.get("method", DEFAULT_METHOD)}
        return [key for key in describe_fields(cls) if key.split(".", 1)[0] not in others]

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the keys of a file with the method and the regularisers as objects."""
        import_plugins(data.get("plugins", ()))
        method = _method_class(data.get("method", DEFAULT_METHOD))
        chosen = build(
            method, as_section(method.NAME, data.get(method.NAME, {})), f"{method.NAME}."
        )
        others = {key: value for key, value in data.items() if key != method.NAME}
        if others.keys() - cls.__dataclass_fields__.keys():
            _refuse_other_methods(others)
        terms = as_section("regularise", others.get("regularise", {}))
        return {**others, "method": chosen, "regularise": tuple(map(_term, terms, terms.values()))}

    def to_plain(self) -> dict[str, Any]:
        """Return nested plain values: of the methods only the chosen one has a section."""
        return {
            **super().to_plain(),
            "method": self.method.name,
            "regularise": {term.name: term.to_plain() for term in self.regularise},
            self.method.name: self.method.to_plain(),
        }


def _method_class(name: object) -> type[MethodSettings]:
    """Return the class of a method by its name.

    Raises:
        ConfigError: There is no such method.
    """
    if not isinstance(name, str):
        raise ConfigError(
            f"`method` must be a text, but was given {shown(name)} ({type(name).__name__})"
        )
    if name in METHODS:
        return METHODS.get(name)
    raise ConfigError(
        f"Unknown method {shown(name)}.{did_you_mean(name, METHODS)}",
        allowed=", ".join(METHODS),
        remedy="Set `method` (or `--method`) to one of them.",
    )


def _refuse_other_methods(data: Mapping[str, Any]) -> None:
    """Refuse a section of a method that is not chosen."""
    for name in METHODS:
        if name in data:
            raise ConfigError(
                f"the section `{name}` has no effect with the other settings",
                remedy=f"Remove the section `{name}` or set `method: {name}`.",
            )


def _term(name: object, value: Any) -> RegulariserSettings:
    """Return the regulariser of a section, which may be empty."""
    kind = regulariser_class(name)
    key = f"regularise.{kind.NAME}"
    return build(kind, as_section(key, {} if value is None else value), f"{key}.")


def regulariser_class(name: object) -> type[RegulariserSettings]:
    """Return the class of a regulariser by its name.

    Raises:
        ConfigError: There is no such regulariser.
    """
    if isinstance(name, str) and name in REGULARISERS:
        return REGULARISERS.get(name)
    text = name if isinstance(name, str) else ""
    raise ConfigError(
        f"Unknown regulariser {shown(name)}.{did_you_mean(text, REGULARISERS)}",
        allowed=", ".join(REGULARISERS),
        remedy="`regularise` holds a section for each: `regularise: {l2: {weight: 0.1}}`.",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Measure a policy's success on skills, with 95 % intervals, on fixed start states."""

    policy: str = path("razor-base", or_name=True, main=True)
    """Policy: `razor-base`, a run or checkpoint directory, or a hub id."""
    skills: str = setting("all", main=True)
    """`prior`, `new`, `all`, or skill names, Gymnasium ids, `lerobot:TYPE/TASK` with commas."""
    rename: str = mapping()
    """Map the environment's keys to the policy's: '{observation.images.top: observation.image}'."""
    episodes: int | None = setting(None, low=1, main=True)
    """Episodes per skill (>= 1); None: the manifest's, else 200, or 2000 with `until_width`."""
    manifest: str | None = path(None, main=True)
    """Start states: a manifest's file or a shipped one's name (`razor`); None: held-out seeds."""
    until_width: float | None = setting(None, above=0.0, high=1.0, main=True)
    """Stop a skill once its 95 % interval, high minus low, is this narrow (0, 1]; None: run all."""
    mode: Literal["greedy", "sample"] = setting("greedy", main=True)
    """Actions: the most likely (`greedy`) or drawn from the policy (`sample`)."""
    json: str | None = path(None, main=True)
    """File to write the result to."""
    resume: bool = setting(False, main=True)
    """Go on with an interrupted evaluation; its finished episodes are in `JSON.unfinished`."""
    seed: int = setting(0, low=0, high=MAX_SEED)
    """Seed of sampled actions."""
    seed_offset: int = setting(HELD_OUT_SEED, low=0, high=MAX_SEED)
    """Seed of the first start state; from 1000000 on they are held out from training."""
    device: str = "auto"
    """Torch device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    torch_threads: int | None = setting(None, low=1, high=1024)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first: they may register policies and distances."""

    def _check_together(self) -> None:
        import_plugins(self.plugins)
        if self.resume and self.json is None:
            raise ConfigError(
                "`resume` is set but `json` is not: finished episodes lie next to that file",
                remedy="Name the file of the interrupted evaluation (`--json FILE`).",
            )
        if self.manifest is not None and self.seed_offset != HELD_OUT_SEED:
            raise ConfigError(
                f"`seed_offset` = {self.seed_offset} has no effect: `manifest` has the seeds",
                remedy="Leave one of them out.",
            )


@dataclass(frozen=True, kw_only=True)
class ManifestConfig(Settings):
    """Write down the start states of an evaluation, or check that they are still the same."""

    skills: str = setting("all", main=True)
    """`prior`, `new`, `all`, or skill names or Gymnasium ids with commas."""
    episodes: int | None = setting(None, low=1, main=True)
    """Rows per skill (>= 1); None: 200, or all that the manifest to check has."""
    seed_offset: int = setting(HELD_OUT_SEED, low=0, high=MAX_SEED)
    """Seed of the first start state; from 1000000 on they are held out from training."""
    out: str = path("manifest.json", main=True)
    """File to write (.json or .json.gz)."""
    check: str | None = path(None, main=True)
    """Write nothing; compare this manifest's (file or name) start states with this installation."""
    env: EnvConfig = EnvConfig(image_size=16)
    """How environments are run in parallel."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig(Settings):
    """Run a policy on a task, with an instruction of your own if you like, and film it."""

    policy: str = path("razor-base", or_name=True, main=True)
    """Policy: `razor-base`, a run or checkpoint directory, a hub id, or `expert`."""
    task: str = setting(MAIN_TASK, main=True)
    """The task: a Gymnasium id, a skill's name, or LeRobot's `lerobot:TYPE/TASK`."""
    rename: str = mapping()
    """Map the environment's keys to the policy's: '{observation.images.top: observation.image}'."""
    instruction: str | None = setting(None, main=True)
    """Your own instruction for the policy; None: the task's."""
    episodes: int = setting(9, low=1, high=10_000, main=True)
    """Episodes to run (>= 1)."""
    video: str | None = path(None, main=True)
    """Video file to write (.mp4 or .gif): the episodes in a grid."""
    video_size: int = setting(192, low=32, high=1024)
    """Height and width of one episode in the video, pixels [32, 1024]."""
    mode: Literal["greedy", "sample"] = setting("greedy", main=True)
    """Actions: the most likely (`greedy`) or drawn from the policy (`sample`)."""
    seed: int = setting(HELD_OUT_SEED, low=0, high=MAX_SEED, main=True)
    """Seed of the first start state."""
    device: str = "auto"
    """Torch device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, ..."""
    torch_threads: int | None = setting(None, low=1, high=1024)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig(num_envs=9)
    """How environments are run in parallel."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first: they may register policies and distances."""

    def _check_together(self) -> None:
        import_plugins(self.plugins)


@dataclass(frozen=True, kw_only=True)
class CollectConfig(Settings):
    """Write demonstrations of a scripted expert or of a policy as a LeRobotDataset."""

    task: str = setting(MAIN_TASK, main=True)
    """The task: a Gymnasium id or a skill's name, several with commas, or `prior`."""
    policy: str = path("expert", or_name=True, main=True)
    """Who acts: `expert` (the task's scripted one), `razor-base`, a checkpoint, or a hub id."""
    rename: str = mapping()
    """Map the environment's keys to the policy's: '{observation.images.top: observation.image}'."""
    style: str = setting("a", main=True)
    """The scripted expert's style: `a` (that of the base's pretraining) or `b`."""
    episodes: int = setting(100, low=1, main=True)
    """Successful episodes to write per task (>= 1)."""
    out: str = path("demonstrations", main=True)
    """Dataset directory to create."""
    noise: float = setting(0.0, low=0.0, high=1.0)
    """Standard deviation of noise on executed actions; clean actions are recorded (as in DART)."""
    seed: int = setting(0, low=0, high=HELD_OUT_SEED - 1, main=True)
    """Seed of the first start state."""
    device: str = "auto"
    """Torch device for a policy: `auto`, `cpu`, `cuda`, ..."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first: they may register policies and distances."""

    def _check_together(self) -> None:
        import_plugins(self.plugins)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Settings):
    """Make the base policy from scratch: perception first, then cloning of all prior skills."""

    out: str = path("runs/pretrain", main=True)
    """Run directory to create."""
    tasks: str = setting("prior", main=True)
    """Skills to learn: `prior` (all of them) or names with commas."""
    style: str = setting("a", main=True)
    """The scripted experts' style."""
    chunk_size: int = setting(4, low=1, high=1000)
    """Actions per decision (>= 1)."""
    episodes: int = setting(500, low=1, main=True)
    """Demonstrations per task (>= 1)."""
    disturbance: float = setting(0.3, low=0.0, high=1.0)
    """Probability that an expert's decision is disturbed; the clean one is the label (as in
    DART)."""
    noise: float = setting(0.5, low=0.0, high=1.0)
    """Standard deviation of disturbances, in action units [0, 1]."""
    seed: int = setting(0, low=0, high=HELD_OUT_SEED - 1, main=True)
    """Seed of start states, noise and initialisation."""
    perception_epochs: float = setting(2.0, low=0.0)
    """Epochs on landmark positions alone, before cloning (>= 0)."""
    epochs: float = setting(3.0, above=0.0, main=True)
    """Epochs of cloning before the first round of corrections (> 0)."""
    correction_rounds: int = setting(2, low=0, high=1000)
    """Rounds in which the policy acts and the experts label where it gets to (>= 0), as in
    DAgger."""
    correction_episodes: int = setting(250, low=1)
    """Episodes per task and round on average (>= 1); weak skills get more after the first round."""
    correction_epochs: float = setting(1.0, above=0.0)
    """Epochs over all data after each round but the last (> 0)."""
    final_epochs: float = setting(3.0, above=0.0)
    """Epochs over all data after the last round, with a falling learning rate (> 0)."""
    label_smoothing_bins: float = setting(0.0, low=0.0)
    """Standard deviation of soft action labels, in bins; 0: hard labels."""
    ema_decay: float = setting(0.998, low=0.0, high=0.99999)
    """Decay per gradient step of the weight average that is saved."""
    batch_size: int = setting(128, low=1, main=True)
    """Decisions per gradient step (>= 1)."""
    learning_rate: float = setting(8e-4, above=0.0, main=True)
    """AdamW's peak learning rate (> 0)."""
    perception_learning_rate: float = setting(3e-3, above=0.0)
    """Peak learning rate while only landmark positions are learnt (> 0)."""
    bf16: bool | None = None
    """Compute gradients in bfloat16; None: if that is faster on this processor."""
    warmup_steps: int = setting(200, low=0)
    """Gradient steps over which the learning rate rises from 0 (>= 0)."""
    weight_decay: float = setting(1e-4, low=0.0)
    """AdamW's weight decay (>= 0)."""
    max_grad_norm: float = setting(1.0, above=0.0)
    """Gradients are scaled down to this norm (> 0)."""
    torch_threads: int | None = setting(None, low=1, high=1024)
    """CPU threads of torch (>= 1); None: one per core."""
    env: EnvConfig = EnvConfig()
    """How environments are run in parallel."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """Compare runs: success against forgetting, at equal success on the new task."""

    runs: tuple[str, ...] = path(())
    """Run directories, directories of sweeps, or files of `robo-razor archive` (one or more)."""
    out: str = path("report")
    """Directory for the page `index.html`, `report.md`, `report.json`, CSV and figures."""
    match: tuple[float, ...] = ()
    """New-task success rates [0, 1] at which runs are compared; empty: chosen from the runs."""
    merge: tuple[str, ...] = ()
    """Arms of a sweep to compare as settings of one, e.g. `ppo,ppo_rates`; the first names them."""
    videos: int = setting(2, low=0, high=20)
    """Videos of base and tuned on the same start states [0, 20], if checkpoints are on disk."""
    allow_unlike: bool = False
    """Compare even runs of different versions, renderers or bases; the report lists them."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first: they may register policies and distances."""

    def _check_together(self) -> None:
        import_plugins(self.plugins)
        if bad := [level for level in self.match if not 0.0 <= level <= 1.0]:
            raise ConfigError(f"`match` = {bad[0]} is not a success rate", "values in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class ArchiveConfig(Settings):
    """Pack the measurements of a sweep or a run into one small file, without weights."""

    directory: str = path("")
    """Directory of a sweep (its finished runs are packed) or of one run."""
    out: str | None = path(None)
    """The file, `NAME.tar.xz`; None: the directory's name, in the current folder."""


@dataclass(frozen=True, kw_only=True)
class ListConfig(Settings):
    """List the choices: tasks, methods, policies, settings files, ..."""

    kinds: tuple[str, ...] = ()
    """What to list, one or several; none: tasks, methods, regularisers and policies."""
    env: PackagesConfig = PackagesConfig()
    """Which packages' tasks are listed."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first: they may register methods, regularisers and distances."""

    def _check_together(self) -> None:
        import_plugins(self.plugins)


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Settings):
    """Run an experiment file: methods and settings times seeds, resumable, several at a time."""

    file: str = path("")
    """Experiment file (YAML): what all runs share, and the arms; or the name of one that ships."""
    out: str | None = path(None)
    """Directory of all runs; None: the file's `out`, else `runs/` and the file's `name`."""
    arms: str = "all"
    """Arms to run now (names with commas) and the runs they need, or `all`."""
    backend: str = "local"
    """Where runs start: `local`, on a `ray` cluster that shares this disk, or another launcher."""
    parallel: int | None = setting(None, low=1, high=10_000)
    """Runs at a time (>= 1); None: the file's `parallel`, else as cores and memory allow."""
    attempts: int = setting(3, low=1, high=1000)
    """Starts of a run in one sweep, should something kill it (>= 1)."""
    retry_failed: bool = True
    """Try runs again that failed in an earlier sweep."""
    dry_run: bool = False
    """Check the file, show the runs, and start none."""
    plugins: tuple[str, ...] = ()
    """Python modules to import first: they may register launchers."""

    def _check_together(self) -> None:
        import_plugins(self.plugins)
