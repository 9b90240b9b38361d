"""Estimates of `E S(G(Z))` from any noise design, their intervals, and the efficiency of the design.

The unit is the replicate: an estimate is the mean over units of the member mean, and its standard
error comes from the spread of those unit means. Composite estimators answer to the same three
numbers, `(estimate, se, df)`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from antinb import checks, dataset
from antinb.analysis import diagnostics
from antinb.analysis.bounded import bounded_interval
from antinb.analysis.efficiency import compare, odd_share
from antinb.analysis.estimates import expectation_variance, stratified, unit_members, widened, with_expectation
from antinb.analysis.intervals import row, skew_interval
from antinb.analysis.pixels import pixelwise
from antinb.dataset import design, evaluations

__all__ = ["compare", "interval", "odd_share", "pixelwise"]

REMEDIES = {
    "control": "take more units",
    "t": "take method='skew', or 'bounded' if the statistic lies in [0, 1], or more units",
    "skew": "take more units, or method='bounded' if the statistic lies in [0, 1]",
}
METHODS = ("t", "skew", "bounded")


@checks.typed
def interval(values: xr.DataArray, *, level: float = 0.95, method: str = "t", drop: bool = False) -> pd.DataFrame:
    r"""Return the mean of each statistic with its interval, from the unit means of any plain design.

    `"t"`: `m -+ t_{n-1} s / sqrt(n)` over the n unit means. `"skew"`, for few units whose odd part has
    cancelled: the outer ends of that interval and of Hall's, the inverse at the t quantiles of the
    transformation `g(T) = T + c T^2 / 3 + c^2 T^3 / 27 + c / 6` of the t statistic, `c = skewness / sqrt(n)`.
    Hall's alone covers too little where tails are heavy, t alone where they are skewed. `"bounded"`, for a statistic
    that lies in [0, 1], such as an event: the betting interval of `intervals.bounded_p_value`, which covers whatever
    the law and the number of units, and is wider; a constant statistic has one too.
    With several conditions the estimate is the mean within conditions averaged by their shares of
    the units, its variance `sum w_c^2 s_c^2 / n_c` holds no variance between them, and df are
    Satterthwaite's.

    Args:
        values: `(statistic, unit, member)` of `statistics.measure`, with `condition(unit)` if there is one.
        level: from 0.01 to 0.9999.
        method: `"t"`, or for one condition `"skew"` or `"bounded"`.
        drop: whether units with an undefined value are left out, and counted in `dropped`, or refused.

    Returns:
        Rows `statistic, design, estimate, low, high, level, method, units, members, evaluations, se, df, dropped,
        skewness, largest_share, warning`: the last is a sentence that names the remedy where the units cannot carry
        the interval (too skewed, an event seen by too few units, or fewer than 50 units with `"skew"` or after
        `controls.regression` or `surrogate`), otherwise "". `largest_share` is that of the largest deviation in the sum
        of squares.

    Raises:
        ValueError: for fewer than two units in a condition, a constant or undefined statistic, an
            unknown method, a level out of its range or, with `"bounded"`, a value outside [0, 1].

    Source: Hall, On the removal of skewness by transformation, JRSS B 54 (1992), 221-228; Waudby-Smith and Ramdas,
        arXiv 2010.09686.

    Examples:
        >>> from antinb import dataset, noise, statistics
        >>> about = {"design": {"name": "antithetic"}, "seed": 0, "evaluations": 1}
        >>> run = dataset.build({"image": noise.antithetic(50).draw((1, 8, 8), seed=0)}, about)
        >>> table = interval(statistics.measure(run, statistics.contrast))
        >>> table["statistic"].item(), table["units"].item()
        ('contrast', 50)
    """
    checks.level(level)
    checks.choice("method", method, METHODS)
    values = dataset.measured(values)
    rows = []
    for name in values["statistic"].values.tolist():
        table, conditions, dropped = unit_members(values.sel(statistic=name), name, drop)
        if method == "bounded" and "control" in values.attrs:
            raise ValueError(
                f"the method 'bounded' is for a statistic in [0, 1]; {name} less a control has no such range"
            )
        if method == "bounded" and not ((table >= 0) & (table <= 1)).all():
            found = f"{table.min():g} to {table.max():g}"
            raise ValueError(f"the method 'bounded' is for a statistic in [0, 1]; {name} goes from {found}")
        means, constant = table.mean(1), method == "bounded" or expectation_variance(values, name) > 0
        found = with_expectation(stratified(means, conditions, name, constant=constant), values, name)
        ends = found.interval(level)
        if method != "t":
            if len(np.unique(conditions)) > 1:
                raise ValueError(f"the method {method!r} is for one condition; take 't', or one condition at a time")
            ends = (skew_interval if method == "skew" else bounded_interval)(means, level)
            ends = widened(ends, found, level, values, name)
        rest = means - np.array([means[conditions == kind].mean() for kind in conditions])
        bound = diagnostics.SKEWED if method == "t" else diagnostics.VERY_SKEWED
        about = {"members": values.sizes["member"], "evaluations": evaluations(values)}
        about |= {"se": found.se, "df": found.df, "dropped": dropped, **diagnostics.shape(rest)}
        warning, least = "", diagnostics.FEW if method == "skew" else 0
        if method != "bounded":
            remedy = REMEDIES["control" if "control" in values.attrs else method]
            warning = diagnostics.warning(rest, remedy, bound=bound, least=least)
            warning = warning or (diagnostics.few(len(means), remedy) if "control" in values.attrs else "")
        result = row((found.estimate, *ends), level=level, method=method, units=len(means), warning=warning, **about)
        rows.append({"statistic": name, "design": design(values), **result})
    return pd.DataFrame(rows)
