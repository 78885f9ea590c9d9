"""Compares networks and catalogs on the same objects."""
