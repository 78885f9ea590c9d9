"""The node cache: shared memory and SSD that hold whole shards, filled once, never evicted."""
