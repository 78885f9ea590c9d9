"""Which bands a network listens to at which redshift, beside what the bands can tell."""
