"""Inference, metrics, predictions and the report."""
