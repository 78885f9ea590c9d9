"""From a source of objects to a data set: parallel, resumable, every output whole or absent."""
