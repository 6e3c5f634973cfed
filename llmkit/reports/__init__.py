"""Metrics to one self-contained HTML page and a model card."""
