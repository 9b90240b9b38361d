"""Generators: every kind of model behind one contract, noise in and images out."""
