"""Shared by all rooms: atomic files, checksums, signals, text, options, MPI."""
