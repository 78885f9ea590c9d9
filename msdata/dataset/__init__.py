"""The format on disk: manifest, index and shards, and the data set made of them."""
