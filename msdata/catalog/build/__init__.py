"""Compiles a spectroscopic sample from the surveys' own tables."""
