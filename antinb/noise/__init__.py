"""Noise designs: which random numbers a model starts from, and how those of one unit are coupled."""

from antinb.noise.designs import Design, antithetic, iid, partial, simplex
from antinb.noise.points import latin, sobol

__all__ = ["Design", "antithetic", "iid", "latin", "partial", "simplex", "sobol"]
