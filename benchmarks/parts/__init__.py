"""Benchmarks of one part of the product each, with options of their own."""
