"""Networks, their heads and norms."""
