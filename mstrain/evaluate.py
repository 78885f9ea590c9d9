"""`python -m mstrain.evaluate`, which torchrun starts on every rank; see `run_module`."""

from mstrain.cli import run_module

run_module("evaluate", __name__)
