"""Analysis: runs to numbers with intervals, without torch."""
