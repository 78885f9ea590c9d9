"""Fits calibrations on a validation split; `mstrain.evaluation.calibration` applies them."""
