"""Deduplication: marks of each part of a corpus, decisions over the marks of all parts, and what becomes of each document."""
