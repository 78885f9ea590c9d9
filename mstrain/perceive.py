"""`python -m mstrain.perceive`, which torchrun starts on every rank; see `run_module`."""

from mstrain.cli import run_module

run_module("perceive", __name__)
