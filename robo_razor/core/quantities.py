"""Labels and units of the measured quantities.

The names are the keys of `summary.json` and `action_kl.json`. `robo_razor.evaluation` measures
distances between two policies; reports, which read files only, take their labels from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from robo_razor.core.metrics import KL_BASE_TUNED, KL_TUNED_BASE

NATS = "nats per decision"


@dataclass(frozen=True)
class Quantity:
    """A quantity as people read it.

    Attributes:
        label: Its name in axes and tables.
        unit: Its unit; empty for a plain number.
    """

    label: str
    unit: str = ""


QUANTITIES = {
    # Of action distributions, per probe set.
    KL_BASE_TUNED: Quantity("KL(base ‖ tuned)", NATS),
    KL_TUNED_BASE: Quantity("KL(tuned ‖ base)", NATS),
    "entropy_base": Quantity("entropy base", NATS),
    "entropy_change": Quantity("Entropy change", NATS),
    "total_variation": Quantity(
        "Total variation, per action token", "mean over action tokens, [0, 1]"
    ),
    "total_variation_chunk": Quantity("Total variation, per decision", "per decision, [0, 1]"),
    "total_variation_chunk_lower": Quantity("total variation chunk lower", "per decision, [0, 1]"),
    "total_variation_chunk_upper": Quantity("total variation chunk upper", "per decision, [0, 1]"),
    "greedy_disagreement": Quantity("Greedy actions that differ", "share of action tokens"),
    "greedy_disagreement_chunk": Quantity("greedy disagreement chunk", "share of decisions"),
    "chunk_distance": Quantity("chunk distance", "squared normalised action units"),
    # Of weights and activations; the order is that of `summary.json`.
    "weight_l1": Quantity("Weight change, L1"),
    "weight_l2": Quantity("Weight change, L2"),
    "weight_spectral": Quantity("Weight change, spectral norm"),
    "effective_rank": Quantity("Effective rank of the update", "share of the full rank"),
    "sparsity_fp32": Quantity("Update sparsity, fp32", "share of weights"),
    "sparsity_1e-5": Quantity("Update sparsity, changes up to 1e-5", "share of weights"),
    "sparsity_bf16": Quantity("Update sparsity, bf16", "share of weights"),
    "weight_fisher_l2": Quantity("Weight change, Fisher-weighted L2", "square root of nats"),
    "activation_l1": Quantity("Activation change, L1"),
    "activation_l2": Quantity("Activation change, L2"),
    "cknna": Quantity("CKNNA with the base"),
}
"""Name -> quantity; a plugin's predictors are added when they are registered."""


def quantity(name: str) -> Quantity:
    """Return the quantity of a name; an unknown name becomes its own label."""
    return QUANTITIES.get(name) or Quantity(name.replace("_", " "))
