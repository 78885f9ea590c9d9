"""`mstrain export RUN MODEL.msz`: a run's weights, and all that predicts with them, as one file.

`mstrain evaluate`, `predict`, `perceive` and `mstrain.load_model` take the file where they take the
run's folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdata.core.checked_json import parse_json
from msdata.core.files import storage_error
from msdata.core.output_file import check_output, make_folder
from msdata.core.text import bytes_text
from msdata.errors import UsageError
from mstrain.evaluation.run_info import TrainedRun, open_run
from mstrain.models.heads import bin_edges
from mstrain.models.model_file import (
    COMPANIONS,
    FORMAT_VERSION,
    MARK,
    SUFFIX,
    companion_file,
    is_model_file,
    write_model_file,
)
from mstrain.options import add_printed, add_run
from mstrain.training.checkpoint import checkpoint_sha256, read_trained, versions


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model file that was written.

    Attributes:
        path: the file.
        sha256: its digest.
        nbytes: its size.
        checkpoint: whose weights, "best" or "last".
        step: optimizer steps before the checkpoint.
        companions: files of the run's folder that went along.
    """

    path: Path
    sha256: str
    nbytes: int
    checkpoint: str
    step: int
    companions: tuple[str, ...]


def export(
    run: Path | str,
    path: Path | str,
    *,
    checkpoint: str = "best",
    license: str | None = None,
    cite: str | None = None,
) -> Exported:
    """Writes a run's network as one file without pickles.

        mstrain.export("RUN", "MODEL.msz", license="CC-BY-4.0")
        model, config = mstrain.load_model("MODEL.msz")

    Args:
        run: the run's folder.
        path: the file, *.msz; replaced if it is a model file.
        checkpoint: "best" by validation loss, or "last".
        license: name or URL of the terms of use.
        cite: the citation.

    Returns:
        What was written; the same run gives the same bytes.

    Raises:
        UsageError: the run has no such checkpoint, or the file is another kind of file.
        DataError: the run is damaged.
        MissingPackageError: safetensors is not installed.
        StorageError: the file system refused.
    """
    run, path = Path(run), Path(path)
    if path.suffix != SUFFIX:
        raise UsageError(f"the model file's name must end in {SUFFIX}, got {path}")
    if is_model_file(run):
        raise UsageError(f"RUN must be the folder of a training, got the file {run}")
    trained = open_run(run, checkpoint)
    check_output(path, MARK)
    _, content = read_trained(run, checkpoint)
    companions = _companions(run)
    fields = _fields(trained, content) | {"license": license, "citation": cite}
    make_folder(path.absolute().parent)
    digest = write_model_file(
        path,
        json.dumps(fields, indent=1).encode(),
        content["model" if content["average"] is None else "average"],
        {} if trained.prior is None else trained.prior.to_state(),
        companions,
    )
    return Exported(
        path=path,
        sha256=digest,
        nbytes=path.stat().st_size,
        checkpoint=trained.which,
        step=trained.step,
        companions=tuple(companions),
    )


def _fields(trained: TrainedRun, content: Mapping[str, Any]) -> dict[str, Any]:
    """What `model.json` says of a run and its checkpoint."""
    return {
        "format_version": FORMAT_VERSION,
        "config": trained.config.as_dict(),
        "shapes": content["shapes"],
        "schema": trained.schema.to_json(),
        "bin_edges": bin_edges(trained.config.model).tolist(),
        "which": trained.which,
        "checkpoint_sha256": checkpoint_sha256(trained.path, trained.which),
        "progress": {"step": trained.step, "trained": trained.epochs},
        "data": trained.data,
        "fingerprint": trained.fingerprint,
        "versions": {**versions(), "trained_with": content.get("versions")},
    }


def _companions(run: Path) -> dict[str, bytes]:
    """The run's files that go along, by name, each of them checked."""
    found = {}
    for path in sorted(path for pattern in COMPANIONS for path in run.glob(pattern)):
        try:
            found[path.name] = path.read_bytes()
        except OSError as error:
            raise storage_error("read", path, error) from error
        cure = "restore it, or remove it"
        if path.suffix == ".json":
            parse_json(found[path.name], path, cure=cure)
        else:
            companion_file(run, path.name, cure)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain export`."""
    add_run(parser)
    parser.add_argument("model", metavar="MODEL.msz", type=Path, help="file to write")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="weights to export (default: %(default)s)",
    )
    parser.add_argument("--license", help="name or URL of the terms of use, kept in the file")
    parser.add_argument("--cite", help="the citation, kept in the file")
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Exports; returns the exit code."""
    found = export(
        args.run, args.model, checkpoint=args.checkpoint, license=args.license, cite=args.cite
    )
    if args.json:
        fields = {**vars(found), "path": str(found.path), "companions": list(found.companions)}
        print(json.dumps(fields))
        return 0
    print(
        f"{found.path}: {found.checkpoint} checkpoint (step {found.step:,}), "
        f"{bytes_text(found.nbytes)}, with {', '.join(found.companions) or 'no statistics'}\n"
        f"sha256 {found.sha256}"
    )
    if args.license is None:
        print("note: the file names no terms of use; --license sets them")
    return 0
