"""Data of your own: written from arrays, or indexed in place."""
