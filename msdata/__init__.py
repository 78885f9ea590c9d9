"""msdata packs, plans, caches and loads image cutouts for training on many GPUs."""

__version__ = "0.1.0"
