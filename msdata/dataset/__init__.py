"""The format on disk: manifest, index, shards, and the data set that they make."""
