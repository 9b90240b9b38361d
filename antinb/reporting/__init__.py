"""Reporting: figures, claims and notebooks, without torch."""
