"""Whether the units of a run can carry the interval that is built on them: one diagnosis for every estimator."""

from __future__ import annotations

import numpy as np
from scipy import stats

__all__: list[str] = []

SKEWED = 0.12  # skewness / sqrt(units), above which a t interval is doubted
VERY_SKEWED = 0.5  # the same for an interval that allows for skewness
RARE = 15  # units that differ from all others
EVENT = 5  # values that a unit mean of an event takes with up to four members
TESTED = 5000  # units, up to which the Shapiro-Wilk test is tabulated
DOUBTED = 30  # units, below which that test rejects at 15% instead of 5%
FEW = 50  # units, below which no sample shows the skewness that an interval allows for
FEW_SQUARES = 200  # the same for the tails that the interval of a variance allows for


def skewness(means: np.ndarray) -> np.ndarray:
    """Return the skewness `m_3 / m_2^(3/2)` of unit means, `(..., units)` to `(...)`, 0 where they are constant."""
    deviations = means - means.mean(-1, keepdims=True)
    spread, cubes = (deviations**2).mean(-1) ** 0.5, (deviations**3).mean(-1)
    return np.divide(cubes, spread**3, out=np.zeros_like(spread), where=spread > 0)


def shape(means: np.ndarray) -> dict[str, float]:
    """Return `skewness` and `largest_share` of unit means `(units,)`, both NaN if they are constant.

    `largest_share` is the share of the largest deviation in the sum of the squared ones.
    """
    squares = (means - means.mean()) ** 2
    if squares.sum() <= (1e-12 * np.abs(means).max(initial=0)) ** 2:
        return {"skewness": np.nan, "largest_share": np.nan}
    return {"skewness": float(skewness(means)), "largest_share": float(squares.max() / squares.sum())}


def warning(means: np.ndarray, remedy: str, *, bound: float = SKEWED, tails: bool = False, least: int = 0) -> str:
    r"""Return a sentence with the remedy if unit means `(units,)` cannot carry their interval, otherwise "".

    There are three grounds.

    - *Rare*: fewer than 15 units, and fewer than a quarter, differ from the most common value, as with an event that
      was hardly seen. With an expected number of 8, nominal 95% t intervals cover 89%; with 15, 92%.
    - *Skewed*: `|skewness| / sqrt(units)` is above `bound`, and the Shapiro-Wilk test rejects normal units at 5%, with
      fewer than 30 units at 15%. A t interval loses about `0.25 skewness^2 / units` of its coverage, so 0.12 stands for
      a third of a point; the sample's skewness is smaller than that of the law, so the true loss is several times as
      large. Warned are 98% of samples of 20 chi-squared units, 96% of 20 lognormal ones, all samples of 64 of either,
      and 95% of 64 exponential ones. False alarms are at most 15% with fewer than 30 normal units, then 5%, and below
      1% from 64 on. Unit means of few values, such as those of an event, are judged by the first ground only.
    - *Few*: fewer than `least` units, for intervals that stand or fall with a tail that so few do not show.

    What no unit shows cannot be warned of: of samples of 100 units with outliers in 1%, a third hold none and are
    samples of the normal law, so that no rule tells them apart.

    Args:
        means: the unit means, or the residuals within conditions.
        remedy: what to do about it, the end of the sentence.
        bound: of the skewness.
        tails: whether the interval is that of a variance: the bound is then of the skewness of squared deviations, 2.8
            for normal units, so that below 555 units the test alone decides.
        least: units, below which there is always a sentence, unless they take few values.

    Source: for the loss, Hall, The Bootstrap and Edgeworth Expansion (1992), section 2.6; Shapiro and Wilk,
        Biometrika 52 (1965), 591-611; for what no rule can tell, Bahadur and Savage, Ann. Math. Stat. 27 (1956),
        1115-1122.

    Examples:
        >>> warning(np.random.default_rng(0).standard_normal(50), "take more units")
        ''
        >>> warning(np.repeat([0.0, 1.0], [96, 4]), "take more units")
        'only 4 of 100 units differ from the others: take more units'
    """
    units, scale = len(means), np.abs(means).max(initial=0)
    counts = np.unique((means / scale).round(9), return_counts=True)[1] if scale else np.array([units])
    different = units - int(counts.max(initial=0))
    if different < min(RARE, units / 4):
        return f"only {different} of {units} units differ from the others: {remedy}"
    if units < 3 or len(counts) <= min(EVENT, units / 4):
        return ""
    found, level = shape(means), 0.05 if units >= DOUBTED else 0.15
    judged = (means - means.mean()) ** 2 if tails else means
    skewed = abs(skewness(judged)) > bound * units**0.5
    if skewed and (units > TESTED or stats.shapiro(means).pvalue < level):
        size = f"skewness {found['skewness']:.1f}, largest share {found['largest_share']:.2f}, {units} units"
        return f"the units are {'not normal' if tails else 'skewed'} ({size}): {remedy}"
    return few(units, remedy, least)


def few(units: int, remedy: str, least: int = FEW) -> str:
    """Return a sentence with the remedy if there are fewer than `least` units, otherwise ""."""
    return f"{units} units do not show how heavy their tails are: {remedy}" if units < least else ""
