"""`python -m mstrain.train`, which torchrun starts on every rank; see `run_module`."""

from mstrain.cli import run_module

run_module("train", __name__)
