"""A custom config to an initialised transformers model, of any architecture that transformers knows."""
