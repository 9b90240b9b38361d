"""Models of every kind: those that come with the package, and those of others, each a generator once loaded.

`loading` makes a generator of a name, a folder, an id or an object. `shipped` knows what comes with the package;
`folders`, `hub` and `components` read files, and trust none; `flows`, `consistency`, `decoders`, `couplings`,
`functions` and `pipelines` are the kinds of generator beside `antinb.generators`.
"""

from antinb.zoo.loading import classifier, load, mixture, untrained
from antinb.zoo.shipped import DATA, held_out, models, registry, truths

__all__ = ["DATA", "classifier", "held_out", "load", "mixture", "models", "registry", "truths", "untrained"]
