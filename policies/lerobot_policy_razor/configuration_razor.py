"""Configuration of the `razor` policy."""

from dataclasses import dataclass, field

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from lerobot_policy_razor.tokenizer import WordTokenizer

KEYPOINTS = "observation.keypoints"
LANDMARKS = "observation.landmarks"
LANDMARKS_PRESENT = "observation.landmarks_present"


@PreTrainedConfig.register_subclass("razor")
@dataclass
class RazorConfig(PreTrainedConfig):
    """Shape, loss and optimiser settings of `RazorPolicy`.

    The defaults describe a policy of 1.2 M parameters for two 64 px cameras, seven state numbers
    and five action dimensions. LeRobot fills `input_features` and `output_features` from a dataset
    or an environment.
    """

    chunk_size: int = 4  # Actions predicted at once (>= 1).
    n_action_steps: int = 4  # Actions executed before the next observation, in [1, chunk_size].
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.IDENTITY,
        }
    )

    # Language.
    vocab_size: int = field(default_factory=lambda: WordTokenizer().vocab_size)
    max_instruction_tokens: int = 12  # Longer instructions are cut.

    # Vision.
    image_size: int = 64  # Height and width of every camera image, pixels.
    image_mean: tuple[float, float, float] = (0.70, 0.67, 0.64)  # Per channel, of [0, 1] images.
    image_std: tuple[float, float, float] = (0.19, 0.17, 0.16)
    stem_channels: tuple[int, int, int] = (32, 48, 64)  # The last is the number of keypoints.
    softmax_temperature: float = 10.0  # Factor on the logits of the spatial softmax.

    # Landmarks: positions of objects and fixtures that the simulator knows.
    num_landmarks: int = 8  # Landmark slots; 0 switches the read-out off.
    landmark_names: list[str] = field(default_factory=list)  # One name per slot, or empty.
    landmark_center: tuple[float, float, float] = (0.5, 0.0, 0.1)  # Metres, in the base frame.
    landmark_scale: float = 0.1  # Metres per unit of the read-out.
    landmark_weight: float = 20.0  # Factor on the smooth-L1 loss, which is taken in metres.
    landmark_beta: float = 0.02  # Metres at which the smooth-L1 loss turns from square to linear.
    presence_weight: float = 0.1  # Factor on the presence loss.
    detach_landmarks: bool = True  # Stop the action loss at the predicted positions.

    # Transformer.
    dim_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    dim_feedforward: int = 384
    dim_head: int = 256  # Width of the action head and of the landmark read-out.

    # Action tokens.
    num_bins: int = 21  # Bins per action dimension; odd, so that zero is one of them.
    bin_mu: float = 5.0  # Mu-law constant: the larger, the finer the bins around zero.
    label_smoothing_bins: float = 0.0  # Standard deviation of the soft labels, in bins; 0 is hard.

    # Augmentation, in training mode only.
    image_shift_px: int = 0  # Largest random shift; moves the picture against the landmarks.
    image_jitter: float = 0.1  # Largest relative change of brightness, contrast and colour.
    state_noise: float = 0.0  # Standard deviation of noise on the normalised state.

    # Presets of lerobot-train.
    optimizer_lr: float = 5e-4
    optimizer_weight_decay: float = 1e-2
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 200
    scheduler_decay_steps: int = 20_000

    def __post_init__(self) -> None:
        """Check the settings against each other.

        Raises:
            ValueError: A setting is out of range.
        """
        if self.device is None:
            self.device = "cpu"  # A policy this small is fastest on the simulator's processor.
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} must lie between 1 and "
                f"chunk_size={self.chunk_size}."
            )
        if self.num_bins < 3 or self.num_bins % 2 == 0:
            raise ValueError(f"num_bins={self.num_bins} must be odd and at least 3.")
        if self.dim_model % self.n_heads != 0:
            raise ValueError(
                f"dim_model={self.dim_model} must be a multiple of n_heads={self.n_heads}."
            )
        if self.image_size % 4 != 0:
            raise ValueError(f"image_size={self.image_size} must be a multiple of 4.")
        if self.landmark_names and len(self.landmark_names) != self.num_landmarks:
            raise ValueError(
                f"landmark_names has {len(self.landmark_names)} names for "
                f"num_landmarks={self.num_landmarks}; give one per slot or none."
            )
        if self.n_obs_steps != 1:
            raise ValueError(f"n_obs_steps={self.n_obs_steps} must be 1.")

    @property
    def camera_keys(self) -> list[str]:
        """Return the names of the image inputs, in the order of the model's stems."""
        return sorted(self.image_features)

    @property
    def state_dim(self) -> int:
        """Return the size of the proprioceptive state."""
        feature = self.robot_state_feature
        assert feature is not None, "validate_features() comes first"
        return feature.shape[0]

    @property
    def action_dim(self) -> int:
        """Return the number of action dimensions."""
        feature = self.action_feature
        assert feature is not None, "validate_features() comes first"
        return feature.shape[0]

    def validate_features(self) -> None:
        """Check the inputs and outputs, and drop inputs that the policy does not read.

        A dataset may hold more `observation.*` columns (landmarks, for example), which must not be
        normalised like proprioception.

        Raises:
            ValueError: A camera, state or action is missing, or an image has another size.
        """
        if not self.image_features or self.robot_state_feature is None:
            raise ValueError(
                f"razor needs '{OBS_STATE}' and at least one '{OBS_IMAGES}.<camera>' input; the "
                f"inputs are {sorted(self.input_features or {})}."
            )
        if self.action_feature is None:
            raise ValueError("razor needs an 'action' output feature.")
        inputs = self.input_features or {}
        self.input_features = {
            key: PolicyFeature(feature.type, tuple(feature.shape))
            for key, feature in inputs.items()
            if feature.type is FeatureType.VISUAL or key == OBS_STATE
        }
        expected = (3, self.image_size, self.image_size)
        for key, feature in self.image_features.items():
            if tuple(feature.shape) != expected:
                raise ValueError(
                    f"{key} has shape {tuple(feature.shape)}, but image_size={self.image_size} "
                    f"needs {expected}."
                )

    @property
    def observation_delta_indices(self) -> None:
        """Return None: the policy reads only the present observation."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """Return the time steps of the actions in a chunk."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """Return None: rewards are not used."""
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        """Return the optimiser of lerobot-train."""
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Return the learning-rate schedule of lerobot-train."""
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.optimizer_lr / 20,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )
