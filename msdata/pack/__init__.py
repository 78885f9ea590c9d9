"""Packs a source of objects into a data set: parallel, resumable, every output whole or absent."""
