"""Claims and figures as texts: numbers with the digits that matter, macros of LaTeX, entries of BibTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

__all__: list[str] = []

ENDS = ("estimate", "low", "high")
SIGNS = {sign: f"\\{sign}" for sign in "&%$#_{}"}
SIGNS |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$"}
MARKS = {"holds": "✓", "refuted": "✗", "undecided": "?", "descriptive": "·"}
YEAR = 2026
PAPER = """@article{jia2026antithetic,
  title = {Antithetic Noise in Diffusion Models},
  author = {Jia and Liu and Song and Yuan and Shen and Wang},
  year = {2026},
  eprint = {2506.06185},
  archivePrefix = {arXiv},
}"""
MACROS = r"""\ProvideExpandableDocumentCommand{\antinb}{O{estimate}m}{\ifcsname antinb@#2@#1\endcsname
  \csname antinb@#2@#1\endcsname
  \else\PackageError{antinb}{nothing has the id #2 and the key #1}{See manifest.json.}\fi}
\providecommand{\antinbmath}[2][estimate]{\ensuremath{\antinb[#1-math]{#2}}}"""


def told(claim: Mapping[str, Any]) -> list[str]:
    """Return estimate, low and high as texts: four digits, or as many as tell the ends apart; "--" for None."""
    numbers = [claim[key] for key in ENDS]
    known = [number for number in numbers if number is not None]
    spread = max(known) - min(known) if known else 0
    digits = 4
    if spread > 0:
        digits = max(4, 2 + math.ceil(math.log10(max(map(abs, known)) / spread) + 0.5))
    return ["--" if number is None else f"{number:.{digits}g}" for number in numbers]


def stated(claim: Mapping[str, Any]) -> str:
    """Return a claim's state in words, with a mark that needs no colour, and whether it was expected."""
    state, expected = claim["state"], claim["expected"]
    surprise = claim["rule"] is not None and state != expected
    note = f", expected to {'hold' if expected == 'holds' else 'be refuted'}" if surprise else ""
    return f"{MARKS.get(state, '')} {state}{', as expected' if state == expected == 'refuted' else note}"


def escaped(text: str) -> str:
    """Return a text as LaTeX takes it, in one line."""
    return "".join(SIGNS.get(sign, sign) for sign in " ".join(text.split()))


def macros(part: Mapping[str, Any]) -> Iterator[str]:
    """Return the definitions of a notebook's numbers, as they are and for math, and of its captions."""
    for claim in part["claims"]:
        for key, text in zip(ENDS, told(claim), strict=True):
            yield _defined(claim["id"], key, text)
            mantissa, _, power = text.partition("e")
            yield _defined(claim["id"], f"{key}-math", rf"{mantissa}\cdot 10^{{{int(power)}}}" if power else text)
    for figure in part["figures"]:
        yield _defined(figure["id"], "caption", escaped(figure.get("caption", "")))


def _defined(id: str, key: str, text: str) -> str:  # noqa: A002
    return rf"\expandafter\def\csname antinb@{id}@{key}\endcsname{{{text}}}"


def software() -> str:
    """Return the entries of antinb and of the paper."""
    return f"""@software{{antinb,
  title = {{antinb: antithetic noise for diffusion models}},
  author = {{{{The antinb developers}}}},
  version = {{{metadata.version("antinb")}}},
  year = {{{YEAR}}},
}}

{PAPER}"""


def entry(key: str, title: str, what: str, made: Mapping[str, Any]) -> str:
    """Return the entry of a figure or a run, from what its files say of how it was made."""
    version = (made.get("versions") or {}).get("antinb", "of unknown version")
    note = [f"{name} {made[name]}" for name in ("profile", "date", "commit") if made.get(name)]
    note += [f"sha256 of its numbers {made['data_sha256']}"] if "data_sha256" in made else []
    year = str(made.get("date") or "")[:4]
    return f"""@misc{{antinb-{key},
  title = {{{escaped(title)}}},
  howpublished = {{{escaped(what)}, made with antinb {escaped(version)}}},
  note = {{{escaped("; ".join(note))}}},{f"{chr(10)}  year = {{{year}}}," if year else ""}
}}"""
