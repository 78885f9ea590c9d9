"""Where samples come from: pickled dicts, upstream's blocks, mock objects."""
