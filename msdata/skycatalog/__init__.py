"""Compiles a spectroscopic sample from surveys' tables: recipes, cuts, duplicates, reddening."""
