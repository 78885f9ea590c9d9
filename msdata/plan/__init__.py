"""Orders, assignment and ownership of samples: pure functions, NumPy in, NumPy out."""
