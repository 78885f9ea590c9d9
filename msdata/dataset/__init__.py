"""The format on disk: manifest, index and shards, and the data set made of them."""

# Files of a complete data set, for those who only look whether a folder holds one.
MANIFEST_NAME = "dataset.json"
INDEX_NAME = "index.parquet"
