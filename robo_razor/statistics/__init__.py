"""Numbers in, intervals out: pure functions, for the report and for analyses of your own.

Everything named here can be imported from `robo_razor.statistics`; importing it costs nothing until
a name is used. Intervals are 95 % and two-sided unless said otherwise, and come as an `Estimate`
(value, low, high) or as a pair (low, high).

| what you have | what you call |
|---|---|
| successes of one policy on n start states | `wilson_interval` |
| the same of two policies, on different start states | `newcombe_difference` |
| outcomes of two policies on the same start states | `paired_bootstrap`, `mcnemar_exact` |
| numbers of any kind, independent of each other | `bootstrap_mean`, `standard_error` |
| numbers in groups of similar ones, e.g. checkpoints of runs | `clustered_bootstrap` |
| one number per seed | `seed_interval`, for two arms `seed_difference` |
| successes of several skills | `mean_rate_interval` |
| outcomes before and after, per skill | `retention_interval`, `mean_retention_interval`, \
`nbt_interval` |
| a rate and n episodes: which difference is detectable? | `detectable_difference` |
| an evaluation that should stop when its interval is narrow | `SequentialInterval` |
| success along one run | `area_under_curve`, for curves per start state `areas_under_curves`; \
`isotonic`, `interpolate_at` |
| (new, prior) success of checkpoints | `pareto`, `frontier`, `hypervolume` |
| distances and prior success of checkpoints (`LawPoint`) | `fit_law`, `fit_falloff`, \
`predictor_table`, `r2_difference` |
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robo_razor.statistics.bootstrap import (
        bootstrap_mean,
        clustered_bootstrap,
        mean_rate_interval,
        mean_retention_interval,
        nbt_interval,
        paired_bootstrap,
        retention_interval,
    )
    from robo_razor.statistics.hill import Falloff, fit_falloff
    from robo_razor.statistics.intervals import (
        Estimate,
        PairedTest,
        detectable_difference,
        mcnemar_exact,
        newcombe_difference,
        standard_error,
        wilson_interval,
    )
    from robo_razor.statistics.law import Law, LawPoint, fit_law, predictor_table, r2_difference
    from robo_razor.statistics.seeds import seed_difference, seed_interval
    from robo_razor.statistics.stopping import SequentialInterval
    from robo_razor.statistics.tradeoffs import (
        area_under_curve,
        areas_under_curves,
        frontier,
        hypervolume,
        interpolate_at,
        isotonic,
        pareto,
    )

__all__ = [
    "Estimate",
    "Falloff",
    "Law",
    "LawPoint",
    "PairedTest",
    "SequentialInterval",
    "area_under_curve",
    "areas_under_curves",
    "bootstrap_mean",
    "clustered_bootstrap",
    "detectable_difference",
    "fit_falloff",
    "fit_law",
    "frontier",
    "hypervolume",
    "interpolate_at",
    "isotonic",
    "mcnemar_exact",
    "mean_rate_interval",
    "mean_retention_interval",
    "nbt_interval",
    "newcombe_difference",
    "paired_bootstrap",
    "pareto",
    "predictor_table",
    "r2_difference",
    "retention_interval",
    "seed_difference",
    "seed_interval",
    "standard_error",
    "wilson_interval",
]

MODULES = ("intervals", "seeds", "bootstrap", "stopping", "tradeoffs", "law", "hill")
"""The modules of this room, those that need no other one first."""


def __getattr__(name: str) -> Any:
    """Return a public name from the module that has it, which is imported now (PEP 562)."""
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{module}" for module in MODULES)):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
