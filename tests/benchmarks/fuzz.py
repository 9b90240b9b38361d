"""Call every public function with odd values for a while: `python tests/benchmarks/fuzz.py [seconds] [calls]`.

It prints how many calls were right, refused in one line, raw (an error from below) and wrong (taken, or another
result), and an example of each kind of raw and wrong for each argument.
"""

import collections
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import kinds

from antinb.analysis import pixels, resampling


def main(seconds=3600.0, calls=10**9, seed=0):
    """Draw calls until the time or their number is over, and print the table."""
    resampling.RESAMPLES = pixels.MULTIPLIERS = 19
    rng, functions, table, bad = np.random.default_rng(seed), kinds.found(), collections.Counter(), {}
    paths, end, spent = sorted(functions), time.time() + seconds, collections.defaultdict(float)
    parameters = {path: list(kinds.kinds(path, function)) for path, function in functions.items()}
    paths = [path for path in paths if parameters[path]]
    while sum(table.values()) < calls and time.time() < end:
        path = min(rng.choice(paths, 4), key=lambda path: spent[path])
        keys = rng.permutation(parameters[path])[: 1 + (rng.random() < 0.25)]
        changes = {str(key): int(rng.integers(kinds.count(path, functions[path], key))) for key in keys}
        start = time.time()
        verdict, seen = kinds.outcome(path, functions[path], changes)
        spent[path] += time.time() - start
        table[verdict] += 1
        if verdict in ("raw", "wrong"):
            bad.setdefault((verdict, path, *sorted(changes)) if len(changes) == 1 else (verdict, path, "two"), seen)
    print(f"{sum(table.values())} calls of {len(paths)} functions:", dict(table))
    for key, seen in sorted(bad.items()):
        print(*key, seen)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*map(float, sys.argv[1:]))
