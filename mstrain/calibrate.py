"""`python -m mstrain.calibrate`, which torchrun starts on every rank; see `run_module`."""

from mstrain.cli import run_module

run_module("calibrate", __name__)
