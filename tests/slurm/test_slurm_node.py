"""A node's part of a step: arguments arrive as they were, and scratch is this user's alone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

NODE = Path(__file__).parents[2] / "slurm" / "node.sh"
TOKEN = "5eed"
NAME = f"msdata-7-n0-{TOKEN}"
# What shells, bash's substitutions and printf may take for more than a letter.
NAMES = ("a b", "a&b", "{scratch}", "{is_first}", "a\\b", "a'b", 'a"b', "100%s", "$HOME", "*", "-n")


def node(
    folder: Path, *words: str, kind: str = "train", code: int = 0, **environ: str
) -> list[str]:
    """Runs node.sh as srun would; the lines of its log but the first, which says the start."""
    for name in ("logs", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    variables = {
        **{"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n0", "SLURM_NODEID": "0", "PYTHON": "true"},
        **{"SCRATCH_DIR": str(folder / "scratch"), "SCRATCH_TOKEN": TOKEN},
    }
    found = subprocess.run(
        [NODE, kind, folder / "logs", *words], env={**kept, **variables, **environ}, timeout=60
    )
    text = (folder / "logs" / f"n0.{kind}.log").read_text()
    assert found.returncode == code, text
    lines = text.splitlines()
    return lines[1:] if "start " in lines[0] else lines


def show(*words: str) -> tuple[str, ...]:
    """A command that prints its arguments, a line each."""
    return ("bash", "-c", r'printf "<%s>\n" "$@"', "show", *words)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_folders_of_any_name_arrive_as_they_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    words = (str(folder), f"data.cache_peers_dir={folder}/peers", name, f"{name}=1", "")
    assert node(folder, *show(*words)) == [f"<{word}>" for word in words]
    assert list((folder / "scratch").iterdir()) == []


def test_scratch_and_the_first_node_are_filled_in_where_they_are_meant(tmp_path: Path) -> None:
    folder = tmp_path / r"a&b \1 {scratch}"
    folder.mkdir()
    scratch = f"{folder}/scratch/{NAME}"
    words = ("{scratch}/ssd", "data.cache_ssd_dir={scratch}/ssd", "cache_ssd_dir={scratch}/a&b")
    said = node(
        folder,
        *show(*words, "--rdzv-conf=is_host={is_first},read_timeout=600", "--out={scratch}/x"),
    )
    assert said == [
        *(f"<{word.replace('{scratch}', scratch)}>" for word in words),
        "<--rdzv-conf=is_host=1,read_timeout=600>",
        "<--out={scratch}/x>",
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A user's folder, with names in it that steps remove in their own."""
    folder = tmp_path / "data"
    for name in ("train", "serve", "ssd", "asked"):
        (folder / name).mkdir(parents=True)
        (folder / name / "shard.tar").write_text("precious")
    folder.chmod(0o700)
    return folder


def is_whole(data: Path) -> bool:
    return len(list(data.glob("*/shard.tar"))) == 4 and len(list(data.iterdir())) == 4


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_a_link_under_the_name_of_the_scratch_is_never_followed(
    kind: str, data: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # Names that others know, and one that they cannot.
    (scratch / "msdata-7-n0").symlink_to(data)
    assert node(tmp_path, "true", kind=kind) == []
    (scratch / NAME).symlink_to(data)
    (said,) = node(tmp_path, "touch", "{scratch}/ssd/mine", kind=kind, code=1)[-1:]
    assert "is not this user's alone; name a folder of the node with SCRATCH_DIR" in said
    assert is_whole(data)


def test_scratch_that_was_changed_for_a_link_meanwhile_is_not_followed(
    data: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    swap = f'mv "{scratch}/{NAME}" "{scratch}/away"; ln -s "{data}" "{scratch}/{NAME}"'
    node(tmp_path, "bash", "-c", swap)
    assert is_whole(data)


@pytest.mark.parametrize("kind", ["file", "fifo", "open to others", "another user's"])
def test_scratch_that_somebody_else_made_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "scratch" / NAME
    path.parent.mkdir()
    if kind == "file":
        path.touch()
    elif kind == "fifo":
        os.mkfifo(path, 0o700)
    else:
        path.mkdir(0o700)
        if kind == "open to others":
            path.chmod(0o770)
        elif os.geteuid() == 0:
            os.chown(path, 65534, 65534)
        else:
            pytest.skip("only root can make another user's folder")
    said = node(tmp_path, "touch", str(tmp_path / "ran"), code=1)
    assert "is not this user's alone" in said[-1]
    assert not (tmp_path / "ran").exists()


def test_what_an_earlier_start_left_is_removed_and_no_link_among_it_followed(
    data: Path, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    left = scratch / "msdata-7-n0-1a5t"
    (left / "ssd").mkdir(parents=True)
    (left / "ssd" / ".hidden").touch()
    left.chmod(0o700)
    (left / "link").symlink_to(data)
    (scratch / "msdata-7-n0-b0b0").symlink_to(data)
    others = scratch / "msdata-7-n1-1a5t"
    others.mkdir(0o700)
    node(tmp_path, "true")
    assert left.exists()
    node(tmp_path, "true", SLURM_RESTART_COUNT="1")
    assert not left.exists()
    assert others.exists()
    assert is_whole(data)


def test_steps_without_a_common_token_have_scratch_of_their_own(tmp_path: Path) -> None:
    made = [node(tmp_path, *show("{scratch}/x"), SCRATCH_TOKEN="")[-1] for _ in range(2)]
    names = {Path(line.strip("<>")).parent.name for line in made}
    assert len(names) == 2
    assert all(re.fullmatch("msdata-7-n0-[0-9a-f]{16}", name) for name in names)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_scratch_without_a_folder_says_so(tmp_path: Path) -> None:
    said = node(tmp_path, "true", code=1, SCRATCH_DIR=str(tmp_path / "absent"))
    assert "name one with SCRATCH_DIR" in said[-1]


@pytest.mark.parametrize(
    ("words", "codes", "starts"),
    [
        (("--peers-dir", "x"), (137, 1, 0), 3),
        (("--peers-dir", "x"), (2,), 1),
        (("--memory-gib", "1"), (9,), 1),
    ],
)
def test_a_service_over_tcp_that_died_is_started_again_and_no_other(
    words: tuple[str, ...], codes: tuple[int, ...], starts: int, tmp_path: Path
) -> None:
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    # Ends with the next code of the list.
    take = f'cd {tmp_path}; echo up; code=$(head -1 codes); sed -i 1d codes; exit "$code"'
    command = ("bash", "-c", take, "serve", *words)
    said = node(tmp_path, *command, kind="serve", code=codes[-1], SERVICE_PAUSE_S="0")
    assert said.count("up") == starts
    again = [line for line in said if line.endswith("is started again")]
    assert len(again) == starts - 1


def test_a_service_that_is_told_to_end_while_it_is_to_be_started_again_ends(tmp_path: Path) -> None:
    # The step's parent is told, as Slurm does it, by the service that just died.
    said = node(
        tmp_path,
        *("bash", "-c", "(sleep 0.3; kill -TERM $PPID) & echo up; exit 1", "serve", "--peers-dir"),
        *("x",),
        kind="serve",
        SERVICE_PAUSE_S="30",
    )
    assert said.count("up") == 1


def test_compiled_kernels_are_there_again_at_the_next_start(tmp_path: Path) -> None:
    kept = tmp_path / "run" / "compiled.tar"
    kept.parent.mkdir()
    environ = {"COMPILED_FILE": str(kept)}
    names = "$TORCHINDUCTOR_CACHE_DIR $TRITON_CACHE_DIR"
    write = ("bash", "-c", f"for d in {names}; do mkdir -p $d && echo kernel >$d/k; done")
    read = ("bash", "-c", f"for d in {names}; do cat $d/k; done")
    # Another node than the first leaves the file to it.
    node(tmp_path, *write, SLURM_NODEID="1", **environ)
    assert not kept.exists()
    node(tmp_path, *write, **environ)
    assert node(tmp_path, *read, SLURM_NODEID="1", **environ)[-2:] == ["kernel", "kernel"]
    assert list((tmp_path / "scratch").iterdir()) == []
    assert {path.name for path in kept.parent.iterdir()} == {"compiled.tar"}
    kept.write_text("torn")
    (*said, end) = node(tmp_path, "echo", "trained", **environ)
    assert "kernels are compiled again" in "\n".join(said)
    assert end == "trained"
