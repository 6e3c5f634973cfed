"""The downstream tasks, one file each, all of one shape."""
