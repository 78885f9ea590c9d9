"""Transports by which nodes read each other's arenas: one-sided MPI, or TCP."""
