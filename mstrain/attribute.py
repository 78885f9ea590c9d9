"""`python -m mstrain.attribute`, which torchrun starts on every rank; see `run_module`."""

from mstrain.cli import run_module

run_module("attribute", __name__)
