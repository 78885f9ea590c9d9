"""Sources that others wrote: HDF5, NPZ and Zarr files, WebDataset tars, folders of images."""
