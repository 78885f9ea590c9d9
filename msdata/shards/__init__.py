"""Containers of samples: WebDataset tar and HDF5, each with a writer and the spans of its samples."""
