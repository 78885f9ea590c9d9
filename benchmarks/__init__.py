"""Benchmarks: a harness, workloads, bare reads as the limit, and one file per question."""
