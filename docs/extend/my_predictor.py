"""A predictor of your own: the largest change of any weight."""

from robo_razor.evaluation.predictors import Comparison, predictor


@predictor("my_predictor", label="Largest weight change", at_base=0.0)
def my_predictor(comparison: Comparison) -> float:
    """Return the largest absolute change of a weight, 0 where nothing has changed."""
    changes = comparison.weight_changes.values()
    return max((float(change.abs().max()) for change in changes), default=0.0)
