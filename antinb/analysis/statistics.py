"""Statistics: functions that turn each image into one number, and `measure`, which applies them to a run.

Statistics take images `(..., channel, y, x)` in [0, 1] and return `(...)`. The luma of a colour
image is `Y = .299 R + .587 G + .114 B`; a grey image is its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from antinb import checks, dataset
from antinb.analysis.naming import named

__all__ = [
    "Statistic",
    "brightness",
    "centroid_x",
    "centroid_y",
    "contrast",
    "event",
    "l1",
    "measure",
    "mse",
    "pixel_mean",
    "pooled",
    "psnr",
    "ssim",
]

Statistic = Callable[[np.ndarray], np.ndarray]
MARGIN = 5  # pixels at each border where the window of SSIM does not fit


def _real(images: np.ndarray) -> np.ndarray:
    """Return images as an array `(..., channel, y, x)` of real numbers; ValueError if they are none."""
    found = checks.array("an image", images)
    if found.ndim < 3 or not found.size:
        raise ValueError(f"images are (..., channel, y, x), each with a value; got {found.shape}")
    return found


def luma(images: np.ndarray) -> np.ndarray:
    """Return the luma, `(..., channel, y, x)` to `(..., y, x)`; one or three channels, else ValueError."""
    images = _real(images)
    weights = {1: [1.0], 3: [0.299, 0.587, 0.114]}.get(images.shape[-3])
    if weights is None:
        raise ValueError(f"the luma is defined for 1 or 3 channels; got {images.shape[-3]}")
    return np.einsum("...cyx,c->...yx", images, np.array(weights))


def pixel_mean(images: np.ndarray) -> np.ndarray:
    """Return the mean over pixels and channels, in [0, 1].

    Examples:
        >>> pixel_mean(np.full((2, 3, 4, 4), 0.25))
        array([0.25, 0.25])
    """
    return _real(images).mean((-3, -2, -1), dtype=np.float64)


def brightness(images: np.ndarray) -> np.ndarray:
    """Return the mean luma, in [0, 1].

    Examples:
        >>> brightness(np.full((2, 1, 4, 4), 0.25))
        array([0.25, 0.25])
    """
    return luma(images).mean((-2, -1))


def contrast(images: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the luma over pixels, in [0, 0.5].

    Examples:
        >>> contrast(np.array([[[0.0, 1.0]]])).item()
        0.5
    """
    return luma(images).std((-2, -1))


def _centroid(images: np.ndarray, axis: int) -> np.ndarray:
    profile = luma(images).sum(-1 if axis == -2 else -2)
    total = profile.sum(-1)
    moment = profile @ np.arange(profile.shape[-1])
    return np.divide(moment, total, out=np.full(total.shape, np.nan), where=total > 0)


def centroid_x(images: np.ndarray) -> np.ndarray:
    """Return the luma-weighted mean column `sum x Y / sum Y`, in pixels from 0; NaN for a black image.

    Examples:
        >>> images = np.zeros((1, 2, 4))
        >>> images[0, :, 3] = 1
        >>> centroid_x(images).item()
        3.0
    """
    return _centroid(images, -1)


def centroid_y(images: np.ndarray) -> np.ndarray:
    """Return the luma-weighted mean row `sum y Y / sum Y`, in pixels from 0; NaN for a black image.

    Examples:
        >>> images = np.zeros((1, 2, 4))
        >>> images[0, :, 3] = 1
        >>> centroid_y(images).item()
        0.5
    """
    return _centroid(images, -2)


@checks.typed
def event(statistic: Statistic, *, above: float) -> Statistic:
    """Return the statistic `1[S > above]`, whose mean is a probability; NaN stays NaN.

    Raises:
        ValueError: if the bound is no finite number, or the statistic is no function.

    Examples:
        >>> import numpy as np
        >>> event(brightness, above=0.6)(np.full((2, 1, 4, 4), 0.7))
        array([1., 1.])
    """
    [name], above = named([statistic]), checks.number("above", above, -1e300, 1e300)

    def indicator(images: np.ndarray) -> np.ndarray:
        values = np.asarray(statistic(images), np.float64)
        return np.where(np.isnan(values), np.nan, values > above)

    indicator.__name__ = f"{name} > {above:g}"
    return indicator


@checks.typed
def l1(truth: np.ndarray) -> Statistic:
    """Return the statistic `mean |x - truth|`, in [0, 1].

    `truth` is an image `(C, H, W)` in [-1, 1], as generators make them; it is scaled and clipped as the images are.

    Raises:
        ValueError: if the truth is not finite or not `(C, H, W)`; inside, if an image has another shape.

    Examples:
        >>> truth = np.full((1, 16, 16), -0.2)  # 0.4 on the scale from 0 to 1
        >>> l1(truth)(np.full((1, 16, 16), 0.5)).round(6).item()
        0.1
    """
    return _against(truth, "l1", lambda x, known: np.abs(x - known).mean((-3, -2, -1)))


@checks.typed
def mse(truth: np.ndarray) -> Statistic:
    """Return the statistic `mean (x - truth)^2`, in [0, 1]; `truth` and errors as for `l1`."""
    return _against(truth, "mse", lambda x, known: np.square(x - known).mean((-3, -2, -1)))


@checks.typed
def psnr(truth: np.ndarray) -> Statistic:
    """Return the statistic `-10 log10 mean (x - truth)^2`, the peak signal-to-noise ratio in decibels.

    It is infinite at the truth itself; `truth` and errors as for `l1`.

    Examples:
        >>> truth = np.full((1, 16, 16), -0.2)  # 0.4 on the scale from 0 to 1
        >>> psnr(truth)(np.full((1, 16, 16), 0.5)).round(6).item()
        20.0
    """

    def decibels(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        from skimage.metrics import peak_signal_noise_ratio

        with np.errstate(divide="ignore"):
            return np.array([peak_signal_noise_ratio(known, image, data_range=1.0) for image in x])

    return _against(truth, "psnr", decibels)


@checks.typed
def ssim(truth: np.ndarray) -> Statistic:
    """Return the statistic "structural similarity with the truth", in [-1, 1]; see `structural_similarity`.

    Raises:
        ValueError: as `l1`, or if the truth has less than 11 by 11 pixels.

    Examples:
        >>> truth = np.full((1, 16, 16), -0.2)  # 0.4 on the scale from 0 to 1
        >>> ssim(truth)(np.full((2, 1, 16, 16), 0.4)).round(3)
        array([1., 1.])
    """

    def similarity(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        return structural_similarity(x.astype(np.float32), np.broadcast_to(known.astype(np.float32), x.shape))

    return _against(truth, "ssim", similarity)


def structural_similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    r"""Return the structural similarity (SSIM) of two images, `(..., C, H, W)` in [0, 1] twice to `(...)` in [-1, 1].

    The mean, over channels and the pixels at which a window of 11 by 11 pixels fits, of
    `(2 m m' + c)(2 s_xy + d) / ((m^2 + m'^2 + c)(s^2 + s'^2 + d))`: Gaussian means m, variances s^2 and
    covariance s_xy of standard deviation 1.5, `c = 0.01^2`, `d = 0.03^2`. 1 for equal images only.

    Raises:
        ValueError: for images of different shapes or of less than 11 by 11 pixels.

    Source: Wang, Bovik, Sheikh and Simoncelli, IEEE Trans. Image Processing 13 (2004), equation 13.
    """
    from skimage import metrics

    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim < 3 or min(first.shape[-2:]) <= 2 * MARGIN:
        rule = f"SSIM compares images (..., C, H, W) of one shape, at least {2 * MARGIN + 1} pixels high and wide"
        raise ValueError(f"{rule}; got {first.shape} and {second.shape}")
    planes = (part.reshape(-1, *part.shape[-2:]) for part in (first, second))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    local = metrics.structural_similarity(*planes, channel_axis=0, full=True, **window)[1]
    inner = local[:, MARGIN:-MARGIN, MARGIN:-MARGIN].mean((-2, -1), dtype=np.float64)
    return inner.reshape(first.shape[:-2]).mean(-1)


@checks.typed
def measure(data: xr.Dataset, *statistics: Statistic) -> xr.DataArray:
    """Return the statistics of every image, `(statistic, unit, member)` in float64.

    The images are scaled from their range to [0, 1] and clipped; the run's attrs go along. NaN is
    kept, so that undefined values can be counted. The run is read once, by blocks of units, and each
    statistic gets a copy of the block, which it may change.

    Raises:
        ValueError: if it is no run, no statistic is given, two have one name or one does not return a value an image.

    Examples:
        >>> run = dataset.build({"image": np.zeros((3, 2, 1, 4, 4), np.float32)}, {})
        >>> measure(run, brightness, contrast).mean(("unit", "member")).values
        array([0.5, 0. ])
    """
    images = dataset.images(data)
    if not statistics:
        raise ValueError("measure needs at least one statistic, such as antinb.statistics.brightness")
    names = named(statistics)
    template = images.isel(channel=0, y=0, x=0, drop=True)
    values = np.empty((len(statistics), *template.shape))
    for units, block in dataset.blocks(images):
        scaled = dataset.scaled(block, *dataset.limits(data))
        for place, (name, statistic) in enumerate(zip(names, statistics, strict=True)):
            column = np.asarray(statistic(scaled.copy()))
            if column.shape != block.shape[:2] or column.dtype.kind not in "fiub":
                found = f"{column.shape} of {column.dtype}"
                raise ValueError(f"{name} must return one number an image, {block.shape[:2]}; got {found}")
            values[place, units] = column
    labels = {"statistic": names, **template.coords}
    return xr.DataArray(values, labels, ("statistic", *template.dims), "image", {**images.attrs, **data.attrs})


def unit_means(values: xr.DataArray, name: str) -> np.ndarray:
    """Return the unit means of one statistic, `(unit,)`; ValueError if it is undefined in a unit."""
    return dataset.defined(values, name).mean(1)


@checks.typed
def pooled(tables: Sequence[xr.DataArray]) -> xr.DataArray:
    r"""Return the deviations of several runs from their own means, all units in a row: `(statistic, unit, member)`.

    For a mean over R fixed conditions, such as measurements, whose variance is `sum_r V_r / R^2`: the unit means of
    the deviations, scaled by `sqrt(n (N - 1) / ((n - 1) N))` for n units a run and N in all, have the variance that the
    runs have on average. `estimation.compare` of two such tables is the efficiency of a design for that mean.

    Raises:
        ValueError: if there is no table, or they differ in statistics, members, units or design, or have one unit only.
    """
    tables = [dataset.measured(table) for table in tables]
    for first, second in itertools.combinations(tables, 2):
        if first.identical(second):
            raise ValueError("runs are pooled that are independent; two of them have the same values")
    kinds = {
        (table.shape, *table["statistic"].values.tolist(), dataset.design(table), dataset.evaluations(table))
        for table in tables
    }
    if len(kinds) != 1 or tables[0].sizes["unit"] < 2:
        raise ValueError(f"runs are pooled if they have one form and at least two units; got {sorted(map(str, kinds))}")
    units, count = tables[0].sizes["unit"], tables[0].sizes["unit"] * len(tables)
    scale = (units * (count - 1) / ((units - 1) * count)) ** 0.5
    deviations = [scale * (table - table.mean(("unit", "member"))) for table in tables]
    return xr.concat(deviations, "unit").assign_coords(unit=np.arange(count)).assign_attrs(tables[0].attrs)


def _against(truth: np.ndarray, name: str, metric: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Statistic:
    low, high = dataset.RANGE
    given = np.asarray(truth)
    if given.dtype.kind != "f" or given.ndim != 3 or not given.size or not np.isfinite(given).all():
        rule = f"a truth is a finite image (C, H, W) of floating-point numbers in [{low:g}, {high:g}]"
        raise ValueError(f"{rule}; got shape {given.shape} of {given.dtype}")
    known = dataset.scaled(given.astype(np.float64), low, high)

    def statistic(images: np.ndarray) -> np.ndarray:
        if images.shape[-3:] != known.shape:
            raise ValueError(f"the truth has shape {known.shape}; got images {images.shape[-3:]}")
        lead = images.shape[:-3]
        return metric(np.ascontiguousarray(images, np.float64).reshape(-1, *known.shape), known).reshape(lead)

    statistic.__name__ = name
    return statistic
