"""Predictions to metrics with confidence intervals, and comparisons."""
