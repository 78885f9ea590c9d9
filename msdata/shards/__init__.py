"""Containers of samples: WebDataset tar and HDF5, a writer each, their bytes laid out for reads."""
