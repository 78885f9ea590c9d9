"""The facts of one node: collected on the node, carried as plain values."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msdata import __version__
from msdata.cache.budget import free_memory
from msdata.topology import slurm_job

# Nodes with different versions may give different results, or fail to communicate.
PACKAGES = (
    *("numpy", "pyarrow", "torch", "mpi4py", "pyzmq"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
)
_COMMAND_S = 60.0
_TORCH = """
import json, torch
nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
print(json.dumps([torch.cuda.device_count(), nccl and ".".join(map(str, nccl))]))
"""
_DALI = "import nvidia.dali.pipeline, nvidia.dali.fn"


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """One node as a process of the job sees it.

    Attributes:
        node: name of the node.
        versions: versions of Python, msdata and `PACKAGES`, without missing packages.
        cpus_allowed: CPUs that the process may run on.
        cpus_of_job: CPUs that the job has there; None if unknown.
        cpu_quota: CPUs' worth of time that its cgroup grants; None if unlimited.
        memory_free_nbytes: memory that it may still allocate, by the limits of machine and cgroups.
        shm_free_nbytes: free bytes of /dev/shm.
        open_files: limit of open files.
        open_files_most: hard limit, up to which a user may raise it.
        locked_nbytes: limit of locked memory; -1 is unlimited.
        has_infiniband: whether it has InfiniBand adapters.
        file_system: type of the file system that holds the data; None if it does not see them.
        stripe_count: servers that a shard is spread over; None without stripes.
        gpus_of_job: GPUs that the job has there; None if it requested none.
        gpus_seen: GPUs that the driver sees; an instance of MIG counts as one.
        mig_seen: instances of MIG among them.
        gpus_of_torch: GPUs that torch can use; None if torch was not asked.
        nccl: version of NCCL; None if torch lacks it.
        has_dali: whether DALI can be imported; None if the node has no GPU.
    """

    node: str
    versions: dict[str, str] = field(default_factory=dict)
    cpus_allowed: int = 1
    cpus_of_job: int | None = None
    cpu_quota: float | None = None
    memory_free_nbytes: int = 0
    shm_free_nbytes: int = 0
    open_files: int = 0
    open_files_most: int = 0
    locked_nbytes: int = -1
    has_infiniband: bool = False
    file_system: str | None = None
    stripe_count: int | None = None
    gpus_of_job: int | None = None
    gpus_seen: int = 0
    mig_seen: int = 0
    gpus_of_torch: int | None = None
    nccl: str | None = None
    has_dali: bool | None = None

    @property
    def has_gpus(self) -> bool:
        """Whether the job requested GPUs there, or there are any."""
        return bool(self.gpus_of_job or self.gpus_seen)

    def as_json(self) -> str:
        """One line; `from_json` is its inverse."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> NodeFacts:
        """Reads the result of `as_json`, without fields of other versions of msdata."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in json.loads(text).items() if k in known})


def node_facts(data: Path | None, environ: Mapping[str, str]) -> NodeFacts:
    """Collects the facts of this node.

    Args:
        data: a data set, or any folder; None skips the file system.
        environ: environment of this process.
    """
    job = slurm_job(environ)
    shm = os.statvfs("/dev/shm")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    gpus_of_job = None if job is None else job.gpus_on_node
    gpus_seen, mig_seen = _count_gpus()
    gpus_of_torch, nccl = _ask_torch() if gpus_of_job or gpus_seen else (None, None)
    return NodeFacts(
        node=(job.node if job is not None else "") or platform.node(),
        versions=_versions(),
        cpus_allowed=len(os.sched_getaffinity(0)),
        cpus_of_job=None if job is None else job.cpus_on_node,
        cpu_quota=_cpu_quota(),
        memory_free_nbytes=free_memory(),
        shm_free_nbytes=shm.f_bavail * shm.f_frsize,
        open_files=files[0] if files[0] >= 0 else sys.maxsize,
        open_files_most=files[1] if files[1] >= 0 else sys.maxsize,
        locked_nbytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        has_infiniband=_has_entries(Path("/sys/class/infiniband")),
        file_system=None if data is None or not data.exists() else file_system_of(data),
        stripe_count=None if data is None else _stripe_count(data),
        gpus_of_job=gpus_of_job,
        gpus_seen=gpus_seen,
        mig_seen=mig_seen,
        gpus_of_torch=gpus_of_torch,
        nccl=nccl,
        has_dali=_has_dali() if gpus_of_job or gpus_seen else None,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "msdata": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _cpu_quota() -> float | None:
    """CPUs' worth of time of the cgroup that the mount shows, version 2 or 1."""
    root = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            return quota_us / int((root / "cpu" / "cpu.cfs_period_us").read_text())
    return None


def _has_entries(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that holds a path, such as "lustre", or "unknown".

    Args:
        path: an existing file or folder.
        mounts: the kernel's table of mounts.
    """
    target = path.resolve()
    best, kind = -1, "unknown"
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return kind
    for line in lines:
        _, place, found = line.split()[:3]
        mount = Path(place.replace("\\040", " "))
        # A later mount covers an earlier one at the same place.
        if target.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), found
    return kind


def _stripe_count(data: Path) -> int | None:
    """The number of servers that Lustre spreads a shard over; None if unknown."""
    shard = next((p for p in sorted(data.glob("*/shard-*")) if p.suffix != ".idx"), data)
    text = output_of(["lfs", "getstripe", "--stripe-count", str(shard)])
    with suppress(ValueError):
        return int((text or "").split()[0] if text else "")
    return None


def _count_gpus() -> tuple[int, int]:
    """GPUs that the driver sees, and how many of them are instances of MIG."""
    lines = (output_of(["nvidia-smi", "--list-gpus"]) or "").splitlines()
    num_instances = sum(line.lstrip().startswith("MIG ") for line in lines)
    return num_instances or sum(line.startswith("GPU ") for line in lines), num_instances


def _has_dali() -> bool:
    """Tries it in a separate process: it loads libraries of CUDA, which may not fit the node's."""
    return output_of([sys.executable, "-c", _DALI]) is not None


def _ask_torch() -> tuple[int | None, str | None]:
    """Asks torch in a separate process, which a broken driver may crash."""
    text = output_of([sys.executable, "-c", _TORCH])
    if text is None:
        return None, None
    count, nccl = json.loads(text.splitlines()[-1])
    return count, nccl


def output_of(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str | None:
    """A command's standard output; None if it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done: Any = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=True,
            env=environ,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return str(done.stdout)
