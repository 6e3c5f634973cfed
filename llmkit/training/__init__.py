"""Samples to weights: one engine for pretraining and fine-tuning."""
