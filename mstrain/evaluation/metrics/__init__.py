"""Metrics of densities and classes: pure NumPy, exact for densities that are constant in each bin.

`densities` has the integrals, `scores` what belongs to one object, `summary` what belongs to many,
with intervals from `bootstrap`. Medians do not add up: objects of all ranks are gathered first.
"""
