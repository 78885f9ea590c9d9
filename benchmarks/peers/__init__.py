"""The contestants of the benchmark `loaders`, each in a file of its own; see `protocol`."""

# Modules of this package that define PEER, in the order of tables.
PEER_NAMES = (
    *("ours_tar", "ours_cached", "ours_hdf5", "ours_block"),
    *("bare_map", "bare_preadv", "bare_sequential"),
    *("pickles_dataloader", "npy_dataloader", "webdataset_tars", "dali_webdataset", "dali_numpy"),
    *("h5py_straight", "h5py_dataloader", "grain_arrayrecord", "spdl_pickles", "zarr_arrays"),
    *("litdata_chunks", "mosaic_streaming"),
)
