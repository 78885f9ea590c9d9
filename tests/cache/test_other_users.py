"""What another user of a node can spoil by guessing names in shared folders: nothing.

The other user acts through `setpriv`, for which the tests have to run as root.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import caching
import packing
import pytest

import msdata
from msdata.cache.arena import arena_path, own_arenas, strange_arenas
from msdata.cache.config import CacheConfig
from msdata.cache.metrics import remove_stale_metrics
from msdata.cache.own_file import open_own, open_own_folder
from msdata.cache.served import served_place
from msdata.cache.service import Service
from msdata.cache.split import cached_split, owners_of_nodes, record_reader
from msdata.cache.ssd import ssd_folder
from msdata.cache.transport.group import Group
from msdata.cache.transport.link import describe_service, link_address
from msdata.cache.transport.rendezvous import address_of, announce, job_keys
from msdata.cache.transport.zmq_transport import make_keys
from msdata.dataset.dataset import Split
from msdata.errors import StorageError

OTHER = 12345
PRECIOUS = b"precious"


def _why_not() -> str:
    if os.geteuid() != 0:
        return "acting as another user needs root"
    command = shutil.which("setpriv")
    if command is None:
        return "acting as another user needs setpriv (util-linux)"
    return "" if subprocess.run([*_prefix(), "true"]).returncode == 0 else "setpriv is refused here"


def _prefix() -> list[str]:
    return ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "can act as another user")


def by_other(script: str, *words: object) -> None:
    """Runs a shell script as the other user; `$1` and so on are the words."""
    command = [*_prefix(), "sh", "-ec", script, "sh", *map(str, words)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /dev/shm: all may make names in it."""
    made = Path(tempfile.mkdtemp(prefix="msdata-test-"))
    made.chmod(0o1777)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def precious(shared: Path) -> Iterator[Path]:
    """A file of ours that the other user can name but not write to."""
    path = shared / "precious"
    path.write_bytes(PRECIOUS)
    path.chmod(0o600)
    yield path
    assert path.read_bytes() == PRECIOUS
    assert path.stat().st_uid == os.geteuid()


@pytest.fixture
def split(packed: Callable[..., Path], tiny_source: Path) -> Split:
    return msdata.open(packed(tiny_source, *packing.TINY_SHARDS)).split("train")


# What the other user puts under a name: `$1` is the name, `$2` a file of ours.
PLANTS = {
    "file": 'echo theirs >"$1"; chmod 666 "$1"',
    "closed file": 'echo theirs >"$1"; chmod 600 "$1"',
    "link": 'ln -s "$2" "$1"',
    "dangling link": 'ln -s "$1.nowhere" "$1"',
    "FIFO": 'mkfifo -m 666 "$1"',
    "folder": 'mkdir -m 777 "$1"',
}
kinds = pytest.mark.parametrize("kind", PLANTS)


def plant(kind: str, path: Path, precious: Path) -> os.stat_result:
    by_other(PLANTS[kind], path, precious)
    return path.lstat()


def assert_untouched(path: Path, before: os.stat_result) -> None:
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (
        before.st_ino,
        before.st_mode,
        OTHER,
    )
    if stat.S_ISREG(after.st_mode):
        assert path.read_bytes() == b"theirs\n"
    if stat.S_ISDIR(after.st_mode):
        assert not list(path.iterdir())
    assert not path.with_name(path.name + ".nowhere").exists()


def ids_of(split: Split, config: CacheConfig, **options: Any) -> list[str]:
    """All that a loader gives; its cache may not be had, its samples must."""
    with msdata.Loader(split, caching.BATCH, cache=config, **options) as loader:
        found = [str(i) for batch in loader for i in batch["sample_id"]]
    assert len(set(found)) == len(split)
    return found


@kinds
def test_an_arenas_name_that_is_taken_costs_the_cache_and_no_more(
    split: Split, shared: Path, precious: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = CacheConfig(shm_dir=shared, job="test")
    path = arena_path(config, cached_split(split), 0)
    before = plant(kind, path, precious)
    ids_of(split, config)
    assert f"no cache: cannot use {path}: it " in caplog.text
    assert "all samples come from storage" in caplog.text
    assert_untouched(path, before)


def test_a_hard_link_to_a_file_of_ours_is_not_taken_for_an_arena(
    split: Split, shared: Path, precious: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = CacheConfig(shm_dir=shared, job="test")
    # Where fs.protected_hardlinks is off, another user can make it.
    os.link(precious, path := arena_path(config, cached_split(split), 0))
    ids_of(split, config)
    assert "it is a hard link" in caplog.text
    assert path.exists()


def cache_command(action: str, shm_dir: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "msdata", "cache", action, "--shm-dir", str(shm_dir)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=packing.environment()
    )


def test_status_and_clean_leave_what_is_not_ours_alone_and_say_so(
    split: Split, shared: Path, precious: Path
) -> None:
    planted = {}
    for number, kind in enumerate(PLANTS):
        path = shared / f"msdata-{os.geteuid()}-job{number}-f-train-n0"
        planted[path] = plant(kind, path, precious)
    (stale := shared / f"msdata-{os.geteuid()}-dead-f-train-n0").write_bytes(b"")
    stale.chmod(0o600)
    by_other('echo theirs >"$1"', theirs := shared / f"msdata-{OTHER}-dead-f-train-n0")
    planted[theirs] = theirs.lstat()
    assert len(strange_arenas(shared)) == len(PLANTS)
    assert own_arenas(shared) == [stale]
    for action in ("status", "clean"):
        process = cache_command(action, shared)
        assert process.returncode == 0, process.stderr
        assert (f"removed {stale}\n" == process.stdout) is (action == "clean")
        assert f"skipped {len(PLANTS)} named like your arenas" in process.stderr
    assert not stale.exists()
    for path, before in planted.items():
        assert_untouched(path, before)


@kinds
def test_a_service_that_makes_arenas_says_in_one_sentence_that_the_name_is_taken(
    split: Split, shared: Path, precious: Path, kind: str
) -> None:
    config = CacheConfig(shm_dir=shared, job="test", memory_gib=0.01)
    cached = cached_split(split)
    path = arena_path(replace(config, node=served_place(None)), cached, 0)
    before = plant(kind, path, precious)
    own = partial(owners_of_nodes, cached)
    with (
        Service(Group(), config, cached, own, lambda: record_reader(split)) as service,
        pytest.raises(StorageError, match=f"^cannot use {path}: it "),
    ):
        service.open()
    assert_untouched(path, before)


def test_a_name_that_another_user_took_is_refused_to_one_who_is_not_root(
    shared: Path,
) -> None:
    (path := shared / "arena").write_bytes(b"")
    path.chmod(0o600)
    says = as_other(lambda: open_own(path, os.O_RDWR | os.O_CREAT))
    assert says == f"cannot use {path}: it belongs to another user (0)"
    (folder := shared / "folder").mkdir(0o700)
    says = as_other(lambda: open_own_folder(folder))
    assert "permission is denied" in says


def as_other(work: Callable[[], object]) -> str:
    """What a StorageError said in a process of the other user."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        said = "no error"
        try:
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            work()
        except StorageError as error:
            said = str(error)
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read, "rb") as file:
        return file.read().decode()


# The SSD tier.


def ssd(split: Split, shared: Path, tmp_path: Path) -> tuple[CacheConfig, Path]:
    config = caching.config(tmp_path, memory_gib=0.0, ssd_dir=shared / "scratch", ssd_gib=1.0)
    return config, ssd_folder(config, cached_split(split), 0)


@kinds
def test_an_ssd_folder_that_is_not_ours_is_neither_used_nor_changed(
    split: Split,
    shared: Path,
    precious: Path,
    tmp_path: Path,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, folder = ssd(split, shared, tmp_path)
    by_other('mkdir -m 1777 "$1"', folder.parent)
    before = plant(kind, folder, precious)
    ids_of(split, config)
    assert f"cannot open the SSD tier: cannot use {folder}: it " in caplog.text
    assert_untouched(folder, before)


def test_an_ssd_folder_that_is_a_link_to_a_folder_of_ours_is_not_written_through(
    split: Split, shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = ssd(split, shared, tmp_path)
    (ours := shared / "home").mkdir(mode=0o700)
    (ours / "records").write_bytes(PRECIOUS)
    (ours / "manifest.json").write_bytes(PRECIOUS)
    by_other('mkdir -m 1777 "$1"; ln -s "$2" "$3"', folder.parent, ours, folder)
    ids_of(split, config)
    assert "it is a symbolic link" in caplog.text
    assert {p.name: p.read_bytes() for p in ours.iterdir()} == {
        "records": PRECIOUS,
        "manifest.json": PRECIOUS,
    }


def test_an_ssd_folder_of_ours_that_others_may_write_to_is_not_used(
    split: Split, shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = ssd(split, shared, tmp_path)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    ids_of(split, config)
    assert f"others may write to it (mode 777); run chmod go-w {folder}" in caplog.text
    assert not list(folder.iterdir())


@kinds
def test_records_that_are_not_ours_in_an_ssd_folder_of_ours_are_not_used(
    split: Split,
    shared: Path,
    precious: Path,
    tmp_path: Path,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, folder = ssd(split, shared, tmp_path)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    before = plant(kind, folder / "records", precious)
    folder.chmod(0o700)
    ids_of(split, config)
    assert f"cannot open the SSD tier: cannot use {folder / 'records'}: it " in caplog.text
    assert_untouched(folder / "records", before)


def test_links_in_place_of_the_manifest_are_replaced_and_not_followed(
    split: Split, shared: Path, precious: Path, tmp_path: Path
) -> None:
    config, folder = ssd(split, shared, tmp_path)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    plant("link", folder / "manifest.json", precious)
    folder.chmod(0o700)
    ids_of(split, config)
    assert not (folder / "manifest.json").is_symlink()
    assert json.loads((folder / "manifest.json").read_text())["split"] == "train"


def test_scratch_that_another_user_made_is_used_by_a_folder_closed_to_them(
    split: Split, shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = ssd(split, shared, tmp_path)
    by_other('mkdir -m 1777 "$1"', folder.parent)
    ids_of(split, config)
    assert not caplog.records
    assert (folder / "records").stat().st_size > 0
    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(subprocess.CalledProcessError):
        by_other('ls "$1"', folder)


@pytest.mark.parametrize("option", ["ssd_dir", "metrics_dir"])
def test_a_folder_that_is_a_link_of_another_user_is_not_used(
    split: Split, shared: Path, tmp_path: Path, option: str, caplog: pytest.LogCaptureFixture
) -> None:
    (ours := shared / "home").mkdir(mode=0o700)
    by_other('ln -s "$1" "$2"', ours, shared / "link")
    sizes = {"memory_gib": 0.0, "ssd_gib": 1.0} if option == "ssd_dir" else {}
    ids_of(split, caching.config(tmp_path, **{option: shared / "link"}, **sizes))
    assert f"{shared / 'link'}: it is a symbolic link that another user made" in caplog.text
    assert not list(ours.iterdir())
    # A link of one's own, to a larger disk, is as good as a folder.
    (shared / "own").symlink_to(ours)
    ids_of(split, caching.config(tmp_path, **{option: shared / "own"}, **sizes))
    assert list(ours.iterdir())


# The folder of the peers.


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('mkdir -m 755 "$1"', "it belongs to another user"),
        ('mkdir -m 777 "$1"', "it belongs to another user"),
        ('ln -s "$2" "$1"', "it is a symbolic link"),
        ('echo theirs >"$1"', "it is not a folder"),
    ],
)
def test_a_peers_folder_that_another_user_put_there_is_refused(
    shared: Path, script: str, says: str
) -> None:
    (ours := shared / "ours").mkdir(mode=0o700)
    by_other(script, shared / "peers", ours)
    with pytest.raises(StorageError, match=says):
        job_keys(shared / "peers", make_keys)
    assert not list(ours.iterdir())


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_peers_folder_that_others_may_write_to_is_refused(shared: Path, mode: int) -> None:
    (folder := shared / "peers").mkdir()
    folder.chmod(mode)
    with pytest.raises(StorageError, match="others may write to it"):
        job_keys(folder, make_keys)
    assert not list(folder.iterdir())


@kinds
def test_a_key_that_another_user_put_there_is_refused(
    shared: Path, precious: Path, kind: str
) -> None:
    (folder := shared / "peers").mkdir()
    folder.chmod(0o777)
    before = plant(kind, folder / "key.json", precious)
    folder.chmod(0o700)
    with pytest.raises(StorageError, match=r"cannot use .*key\.json: it "):
        job_keys(folder, make_keys)
    assert_untouched(folder / "key.json", before)


@kinds
def test_an_announcement_that_another_user_put_there_is_not_believed(
    shared: Path, precious: Path, kind: str
) -> None:
    (folder := shared / "peers").mkdir(mode=0o700)
    announce(folder, "data", 0, "tcp://a:1")
    assert address_of(folder, "data", 0) == "tcp://a:1"
    folder.chmod(0o777)
    plant(kind, folder / "data-n1.json", precious)
    assert address_of(folder, "data", 1) is None


# Counters.


@kinds
def test_names_of_counters_that_are_taken_are_not_written_to(
    split: Split,
    shared: Path,
    precious: Path,
    tmp_path: Path,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (folder := shared / "metrics").mkdir()
    folder.chmod(0o777)
    name = "msdata-test-train-rank0"
    planted = {
        folder / f"{name}{suffix}": plant(kind, folder / f"{name}{suffix}", precious)
        for suffix in (".jsonl", ".prom", ".prom.partial")
    }
    ids_of(split, caching.config(tmp_path, metrics_dir=folder))
    assert "cannot write counters: cannot" in caplog.text
    for path, before in planted.items():
        assert_untouched(path, before)


def test_stale_counters_of_others_are_not_removed(shared: Path) -> None:
    (folder := shared / "metrics").mkdir()
    folder.chmod(0o777)
    by_other('echo theirs >"$1"; touch -d 2001-01-01 "$1"', theirs := folder / "msdata-a.prom")
    (ours := folder / "msdata-b.prom").write_bytes(b"")
    os.utime(ours, (1e9, 1e9))
    remove_stale_metrics(folder)
    assert theirs.exists()
    assert not ours.exists()


# Sockets.


def test_an_address_that_another_users_process_holds_is_no_service(
    split: Split, shared: Path
) -> None:
    config = CacheConfig(shm_dir=shared, job="test", node="served")
    address = link_address(arena_path(config, cached_split(split), 0))
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setresuid(OTHER, OTHER, OTHER)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
                door.bind(address)
                door.listen(4)
                os.write(write, b"1")
                door.accept()[0].recv(100)
        finally:
            os._exit(0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    assert describe_service(address) is None
    os.waitpid(pid, 0)
    assert ids_of(split, CacheConfig(shm_dir=shared, job="test"))


def test_a_file_of_the_other_user_is_never_own_whatever_its_mode(shared: Path) -> None:
    for mode in (0o000, 0o400, 0o600, 0o666, 0o777):
        path = shared / f"{mode:o}"
        by_other('echo theirs >"$1"; chmod "$2" "$1"', path, f"{mode:o}")
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_CREAT):
            with pytest.raises(StorageError, match=f"belongs to another user \\({OTHER}\\)"):
                open_own(path, flags, is_private=False)
        assert path.read_bytes() == b"theirs\n"
