"""The contestants of the benchmark `loaders`: one table of names, in the order of its tables."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.peers import bare, readers, torch_loading, whole
from benchmarks.peers.protocol import Peer

_TORCH = "none: the DataLoader has no state; torchdata's stateful one replays"
_TORCH_ADVICE = "PyTorch, torch.utils.data: num_workers=cores, persistent_workers, collation"
_DALI = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
_DALI_RESUME = "exact: a pipeline's checkpoint, where all of its operators support it"
_USER = "none: left to its user"
_CACHE = "data that fit in memory: cache='auto' keeps them in shared memory"
_CODED = ("--quantize", "4", "--compress", "lz4")


def _ours(
    title: str,
    *packed: str,
    shuffle: str = "uniform",
    advice: str = "",
    decoded: Any = None,
    **options: Any,
) -> Peer:
    return Peer(
        f"msdata, {title}",
        ("msdata",),
        partial(readers.load_ours, **options),
        partial(readers.pack_ours, options=packed),
        shuffle,
        "exact: state_dict() holds (seed, epoch, position); on other numbers of ranks too",
        f"README: {advice or 'num_valid_batches=1, prefetch=2 for batches used one by one; '}"
        + ("" if advice else "threads=cores"),
        is_ours=True,
        decoded=decoded,
    )


def _torch(
    title: str, packages: tuple[str, ...], reader: Any, convert: Any, advice: str = ""
) -> Peer:
    return Peer(
        *(title, packages, partial(torch_loading.open_samples, reader), convert, "uniform"),
        *(_TORCH, _TORCH_ADVICE + advice),
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
    "ours_tar": _ours("tar, shuffle"),
    "ours_cached": _ours("tar, shuffle, cache", advice=_CACHE, cache="auto"),
    "ours_lean": _ours(
        "tar, shuffle, one ahead",
        advice="least memory that reads ahead: num_valid_batches=1, prefetch=1; threads=cores",
        prefetch=1,
    ),
    "ours_hdf5": _ours("HDF5, shuffle", "--format", "hdf5"),
    "ours_block": _ours(
        "tar, block", shuffle="shards in random order, shuffled in a buffer", policy="block"
    ),
    "ours_coded": _ours("coded: 4 steps per sigma, LZ4", *_CODED, decoded=readers.decode_ours),
    "ours_coded_cached": _ours(
        "coded: 4 steps per sigma, LZ4, cache",
        *_CODED,
        advice=_CACHE,
        decoded=readers.decode_ours,
        cache="auto",
    ),
    "bare_map": _bare("memory map of one file of records", bare.open_map),
    "bare_preadv": _bare("bare preadv of one file of records", bare.open_preadv),
    "bare_sequential": _bare(
        *("bare preadv in the order of the file", partial(bare.open_preadv, is_in_order=True)),
        "none",
    ),
    "pickles_dataloader": _torch(
        *("pickles + DataLoader", ("torch",), partial(partial, torch_loading.read_pickle), None)
    ),
    "concurrent_dataloader": Peer(
        "ConcurrentDataloader over pickles",
        ("pytorch-concurrent-dataloader", "torch"),
        torch_loading.open_concurrent,
        *(None, "uniform", "none: as the DataLoader that it was forked from"),
        "its README: num_fetch_workers=16, fetch_impl='asyncio' (its default, 'threaded', delivers "
        "the first samples over and over); torch._six, gone from torch 2, is a stand-in; workers "
        "start in each epoch, as it asks for",
    ),
    "npy_dataloader": _torch(
        *(".npy + DataLoader", ("torch", "numpy"), partial(partial, torch_loading.read_npy)),
        torch_loading.write_npy,
    ),
    "webdataset_tars": Peer(
        *("WebDataset", ("webdataset", "torch"), torch_loading.open_webdataset),
        torch_loading.write_tars,
        f"shards in random order, buffer of {torch_loading.BUFFER_SAMPLES:,} samples per worker",
        "none: webdataset#234",
        "its README: shardshuffle, shuffle(1000), batched in the workers, WebLoader",
    ),
    "wids_tars": Peer(
        *("wids over WebDataset's tars", ("wids", "torch"), torch_loading.open_wids),
        *(torch_loading.write_tars, torch_loading.WIDS_SHUFFLE, _TORCH),
        "wids, its README: ShardListDataset with ChunkedSampler, DataLoader",
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
    "h5py_dataloader": _torch(
        *("h5py + DataLoader", ("h5py", "torch"), torch_loading.HDF5Reader, readers.write_hdf5),
        "; the file opened once per worker",
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
        "Streaming, user guide: MDS shards at their default size, shuffle, batch_size given; "
        "torchvision and transformers, which it imports and MDS does not use, are stand-ins",
    ),
    "ffcv_beton": Peer(
        *("FFCV", ("ffcv", "numba"), whole.open_ffcv, whole.write_beton),
        *("uniform", "none: an epoch starts at its first batch"),
        "FFCV, performance guide: NDArrayField, os_cache where the data fit in memory, "
        "OrderOption.RANDOM; it compiles in the first epoch, so within its cold figure",
    ),
    "turboloader_arrays": Peer(
        *("turboloader, arrays", ("turboloader",), whole.open_turboloader, whole.write_arrays),
        *("uniform", "none: set_epoch alone"),
        "turboloader, README: ArrayDataLoader over memory maps; its other loaders want JPEG",
        reads_ahead=False,
    ),
    "ddstore_arrays": Peer(
        *("DDStore, one rank", ("mpi4py",), whole.open_ddstore, whole.write_arrays),
        *("uniform", _USER, "DDStore, README: MPI backend, get() of each sample in an epoch"),
        reads_ahead=False,
        holds_all=True,
    ),
}
# Why others are not contestants, and what was tried.
NOT_RACED: dict[str, str] = {
    "tcache": (
        "tcache 0.7.1 (INT8, dequantized on the GPU): without a GPU it packs 8 samples/s and "
        "dequantizes 43, so one epoch would take longer than those of all others together; its "
        "default codec is off by 8.8 on noise around 10 of sigma 1, its symmetric one by 0.06"
    ),
}
