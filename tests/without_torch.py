"""Open, measure, compare and draw a stored run where torch is not installed: `python without_torch.py STORE`."""

import importlib.util
import platform
import sys

import matplotlib as mpl

mpl.use("Agg")


def main(store):
    import antinb
    from antinb import comparison, correlation, estimation, figures, noise, report, statistics

    present = [name for name in ("torch", "diffusers", "zuko") if importlib.util.find_spec(name)]
    if present:
        raise SystemExit(f"this environment must lack torch; it has {present}")
    run = antinb.open(store)
    values = statistics.measure(run, statistics.brightness, statistics.contrast)
    table = correlation.summary(run)
    intervals = estimation.interval(values)
    gap = comparison.difference(*values.sel(statistic="contrast").values.T)
    drawn = noise.antithetic(2).draw((1, 4, 4), seed=0)
    if not (table["estimate"].notna().all() and (drawn[:, 0] == -drawn[:, 1]).all()):
        raise SystemExit(f"undefined results:\n{table}")
    book = report.open("out", "without_torch", {"store": store})
    figure = figures.forest(intervals, label="statistic").figure
    book.save_figure(figure, "fig-99-1", "Two statistics with their intervals.", intervals)
    book.claim("99.pn", "pairs are negatively correlated", table.query("pairs == 'PN' and centred"), "<0")
    book.claim("99.contrast", "the two members have one mean contrast", gap, "within 0.05")
    print(f"Python {platform.python_version()}, without torch:", book.claims()["state"].to_dict())


if __name__ == "__main__":
    main(sys.argv[1])
