"""Stage, artefact, manifest, runner. Knows nothing of what a stage does."""
