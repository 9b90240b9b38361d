"""Analysis: from runs to numbers with intervals, without torch."""

__all__: list[str] = []
