"""`python -m mstrain.predict`, which torchrun starts on every rank; see `run_module`."""

from mstrain.cli import run_module

run_module("predict", __name__)
