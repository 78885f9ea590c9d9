"""Turns byte ranges of shards into batches, in the planned order."""
