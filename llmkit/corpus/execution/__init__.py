"""Tasks that can be done again, carried out by processes of this machine, a Ray cluster or a Slurm array."""
