"""`python -m mstrain.embed`, which torchrun starts on every rank; see `run_module`."""

from mstrain.cli import run_module

run_module("embed", __name__)
