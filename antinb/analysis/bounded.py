"""The mean of values in [0, 1]: a test and an interval that hold for any distribution and any sample size."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from antinb import checks

__all__ = ["bounded_p_value"]

LEAST = 1e-9
BETS = np.linspace(0, 1, 101)[1:]


@checks.typed
def bounded_p_value(values: np.ndarray, mean: float, alternative: str) -> float:
    """Return the p-value of "the mean of values in [0, 1] is at most (at least) `mean`".

    Against "at most m", a gambler who stakes the share g of the capital on `X > m` in each of n fair
    or unfavourable rounds ends with `K_g = prod_i (1 - g + g X_i / m)`, whose expectation is at most
    1; the p-value is `1 / mean_g K_g`, g = 0.01, 0.02, ..., 1. The level holds at any sample size
    and for any distribution, however skewed; it cannot go below `m^n`.

    Args:
        values: `(n,)`, independent, in [0, 1].
        mean: m, strictly between 0 and 1.
        alternative: `"greater"` or `"less"`, than `mean`.

    Raises:
        ValueError: for a value outside [0, 1], a mean outside (0, 1), another alternative.

    Source: Waudby-Smith and Ramdas, arXiv 2010.09686, sections 4 and 5 (betting with a mixture of stakes).

    Examples:
        >>> bool(bounded_p_value(np.full(50, 0.99), 0.9, "greater") < 0.05)
        True
    """
    if alternative not in ("greater", "less"):
        raise ValueError(f"alternative must be 'greater' or 'less'; got {alternative!r}")
    if isinstance(mean, bool) or not isinstance(mean, (int, float)) or not 0 < mean < 1:
        raise ValueError(f"the threshold of a share must lie in (0, 1); got {mean!r}")
    shares = _shares(values)
    flip = alternative == "less"
    return float(np.exp(-max(0.0, _log_capital(1 - shares if flip else shares, 1 - mean if flip else mean))))


def bounded_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Return the means in [0, 1] that neither one-sided `bounded_p_value` rejects at `(1 - level) / 2`.

    Raises:
        ValueError: for a value outside [0, 1] or a level not from 0.01 to 0.9999.
    """
    checks.level(level)
    shares, limit = _shares(values), np.log(2 / (1 - level))

    def lower(sample: np.ndarray) -> float:
        if sample.mean() <= LEAST or _log_capital(sample, LEAST) <= limit:
            return 0.0
        bracket = LEAST, sample.mean()
        found = optimize.root_scalar(lambda mean: _log_capital(sample, mean) - limit, bracket=bracket, method="brentq")
        return float(found.root)

    return lower(shares), 1 - lower(1 - shares)


def _log_capital(shares: np.ndarray, mean: float) -> float:
    with np.errstate(divide="ignore"):
        paths = np.log(1 - BETS + BETS * (shares[:, None] / mean)).sum(0)
    return float(special.logsumexp(paths) - np.log(len(BETS)))


def _shares(values: np.ndarray) -> np.ndarray:
    shares = np.asarray(values, float)
    if not shares.size or not ((shares >= -1e-9) & (shares <= 1 + 1e-9)).all():
        raise ValueError(f"shares must be at least one value in [0, 1]; got {checks.quoted(shares)}")
    return shares.clip(0, 1)
