"""Matrices as a few quantised components, and their symbols as bytes: the arithmetic of a low-rank trigger."""
