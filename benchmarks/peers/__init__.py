"""The contestants of the benchmark `loaders`: one table of names, in the order of its tables."""

from __future__ import annotations

from functools import partial

from benchmarks.peers import bare, readers, torch_loading
from benchmarks.peers.protocol import Peer

_TORCH = "none: the DataLoader has no state; torchdata's stateful one replays"
_TORCH_ADVICE = "PyTorch, torch.utils.data: num_workers=cores, persistent_workers, collation"
_DALI = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
_DALI_RESUME = "exact: a pipeline's checkpoint, where all of its operators support it"
_USER = "none: left to its user"


def _ours(title: str, container: str, shuffle: str, advice: str = "", **options: str) -> Peer:
    return Peer(
        f"msdata, {title}",
        ("msdata",),
        partial(readers.load_ours, **options),
        partial(readers.pack_ours, container=container),
        shuffle,
        "exact: state_dict() holds (seed, epoch, position); on other numbers of ranks too",
        f"README: {advice or 'num_valid_batches=1, prefetch=2 for batches used one by one; '}"
        + ("" if advice else "threads=cores"),
        is_ours=True,
    )


def _bare(title: str, open_records: object, shuffle: str = "uniform") -> Peer:
    return Peer(
        title,
        (),
        open_records,  # type: ignore[arg-type]
        bare.write_records,
        shuffle,
        "none: no product",
        "no product",
        is_limit=True,
    )


PEERS: dict[str, Peer] = {
    "ours_tar": _ours("tar, shuffle", "tar", "uniform"),
    "ours_cached": _ours(
        *("tar, shuffle, cache", "tar", "uniform"),
        "data that fit in memory: cache='auto' keeps them in shared memory",
        cache="auto",
    ),
    "ours_hdf5": _ours("HDF5, shuffle", "hdf5", "uniform"),
    "ours_block": _ours(
        "tar, block", "tar", "shards in random order, shuffled in a buffer", policy="block"
    ),
    "bare_map": _bare("memory map of one file of records", bare.open_map),
    "bare_preadv": _bare("bare preadv of one file of records", bare.open_preadv),
    "bare_sequential": _bare(
        *("bare preadv in the order of the file", partial(bare.open_preadv, is_in_order=True)),
        "none",
    ),
    "pickles_dataloader": Peer(
        *("pickles + DataLoader", ("torch",), torch_loading.open_pickles, None),
        *("uniform", _TORCH, _TORCH_ADVICE),
    ),
    "npy_dataloader": Peer(
        *(".npy + DataLoader", ("torch", "numpy"), torch_loading.open_npy),
        *(torch_loading.write_npy, "uniform", _TORCH, _TORCH_ADVICE),
    ),
    "webdataset_tars": Peer(
        *("WebDataset", ("webdataset", "torch"), torch_loading.open_webdataset),
        torch_loading.write_tars,
        f"shards in random order, buffer of {torch_loading.BUFFER_SAMPLES:,} samples per worker",
        "none: webdataset#234",
        "its README: shardshuffle, shuffle(1000), batched in the workers, WebLoader",
    ),
    "dali_webdataset": Peer(
        *("DALI readers.webdataset", _DALI, readers.open_dali_webdataset, readers.write_dali_tars),
        f"buffer of {readers.DALI_BUFFER_SAMPLES:,} samples, shards in order",
        _DALI_RESUME,
        "DALI, readers.webdataset: an index beside each tar, initial_fill at its default",
    ),
    "dali_numpy": Peer(
        *("DALI readers.numpy", _DALI, readers.open_dali_numpy, torch_loading.write_npy),
        *("uniform after the first epoch", _DALI_RESUME),
        "DALI, readers.numpy: files listed, shuffle_after_epoch",
    ),
    "h5py_straight": Peer(
        *("h5py, read straight", ("h5py",), readers.open_hdf5_straight, readers.write_hdf5),
        *("uniform", _USER, "h5py, Datasets: read_direct avoids an intermediate copy"),
        reads_ahead=False,
    ),
    "h5py_dataloader": Peer(
        *("h5py + DataLoader", ("h5py", "torch"), torch_loading.open_hdf5, readers.write_hdf5),
        *("uniform", _TORCH, _TORCH_ADVICE + "; the file opened once per worker"),
    ),
    "grain_arrayrecord": Peer(
        *("Grain + ArrayRecord", ("grain", "array_record"), readers.open_grain),
        *(readers.write_array_record, "uniform"),
        "exact: an iterator's get_state and set_state",
        "Grain, tutorials: MapDataset with the default ReadOptions; ArrayRecord group_size:1",
    ),
    "spdl_pickles": Peer(
        *("SPDL over pickles", ("spdl", "spdl_core"), readers.open_spdl, None),
        *("uniform", "none: left to its user's source"),
        "SPDL, getting started: a pipeline of stages with threads, concurrency=cores",
    ),
    "zarr_arrays": Peer(
        *("Zarr", ("zarr",), readers.open_zarr, readers.write_zarr, "uniform", _USER),
        "Zarr, performance: chunks as they are read, in shards; oindex of a batch",
        reads_ahead=False,
    ),
    "litdata_chunks": Peer(
        *("LitData", ("litdata",), torch_loading.open_litdata, torch_loading.write_litdata),
        "chunks in random order, samples within a chunk",
        "approximate: state_dict of its loader; wrong on several nodes, litdata#248 #316",
        "LitData, README: optimize with 64 MB chunks, StreamingDataLoader, workers=cores",
    ),
    "mosaic_streaming": Peer(
        *("MosaicML Streaming", ("mosaicml-streaming", "torch"), torch_loading.open_mds),
        *(torch_loading.write_mds, "py1e: within blocks of shards"),
        "exact: StreamingDataLoader's state_dict, mid-epoch, on other numbers of ranks",
        "Streaming, user guide: MDS shards at their default size, shuffle, batch_size given",
    ),
}
