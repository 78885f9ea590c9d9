"""Which bands a trained network listens to: scores of what is lost when they say something else."""
