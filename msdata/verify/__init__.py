"""Checks every byte of a data set, and rebuilds damaged shards."""
