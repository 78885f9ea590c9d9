"""Holds the directions of imports, and the sizes and names of modules, on the real tree."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("msdata", "mstrain", "benchmarks")

# Rooms in the order of imports: each may import itself and those before it.
ROOMS = {
    "msdata": (
        *("errors", "launchers", "topology", "core", "schema", "dataset", "catalog", "sources"),
        *("plan", "augment", "cache", "loader", "pack", "ingest", "verify", "describe"),
        *("cluster", "torch", "fetch", "mock", "cli", "__main__"),
    ),
    "benchmarks": (
        *("harness", "comparison", "report", "workloads", "told", "journal", "peers"),
        "augment_rates",
        *("questions", "gpu", "parts", "__main__", "site"),
    ),
    "mstrain": (
        "options",
        *("checks", "network_config", "config", "overrides", "distributed", "models", "recipes"),
        *("data", "training"),
        *("evaluation", "embedding", "calibration", "comparison", "perception", "serving"),
        *("attribution", "notebook", "study", "tune", "cli"),
        "__main__",
        *("train", "evaluate", "predict", "perceive", "calibrate", "embed", "attribute"),
    ),
}
MAX_MODULES_OF_A_ROOM = 20
# Of the plan, all but what reads files and draws.
COMPUTING = ("order", "weighted", "random_words", "assign", "ownership", "forecast")

# Packages that every installation has and any file may import.
FREE_PACKAGES = {"numpy", "pyarrow", "crc32c"}
# mstrain is made of torch; its command line and settings are not, see the test of start-up.
FREE_PACKAGES_OF = {"msdata": FREE_PACKAGES, "mstrain": FREE_PACKAGES | {"torch"}}
# All others: the files that import them, inside functions.
HOMES: dict[str, set[str]] = {
    "requests": {"msdata/fetch/client.py"},
    "h5py": {"msdata/dataset/hdf5.py"},
    "zarr": {"msdata/sources/arrays/zarr_stack.py"},
    "numcodecs": {"msdata/dataset/blosc_chunk.py"},
    "mpi4py": {"msdata/core/mpi.py"},
    "zmq": {"msdata/cache/transport/zmq_transport.py"},
    # No optional package; uses that share nothing: filling NaN, the contact sheet, interpolation,
    # PNG and JPEG of others.
    "cv2": {
        *("msdata/pack/prepare.py", "msdata/describe/sheet.py"),
        *("msdata/augment/reference.py", "msdata/sources/arrays/members.py"),
    },
    "nvidia": {"msdata/augment/dali.py"},
    # A class of torch's kind; operations on its tensors.
    "torch": {
        *("msdata/loader/torch_dataset.py", "msdata/torch.py", "msdata/augment/torch_images.py"),
    },
    "matplotlib": {
        "msdata/plan/rendering.py",
        "msdata/catalog/build/report.py",
        "mstrain/evaluation/report/canvas.py",
    },
    "astropy_healpix": {"msdata/catalog/build/dust.py"},
    "safetensors": {"mstrain/models/model_file.py"},
    "optuna": {"mstrain/tune/journal.py"},
    "speclite": {"msdata/mock/photometry.py"},
    "zuko": {"mstrain/embedding/flow.py"},
    "sklearn": {"mstrain/calibration/fit.py"},
    # It comes with scikit-learn.
    "threadpoolctl": {"mstrain/calibration/fit.py"},
    "scipy": {
        *("msdata/mock/templates.py", "msdata/catalog/sky.py"),
        "mstrain/evaluation/metrics/summary.py",
    },
    # The user's catalogues and images; kcorrect's own tables, for mock objects.
    "astropy": {
        "msdata/catalog/build/dust.py",
        "msdata/catalog/astropy_tables.py",
        "msdata/sources/fits_image.py",
        "msdata/mock/templates.py",
    },
}

# Made of the package: they import it with themselves, and nothing imports them unless asked to.
WHOLLY_MADE_OF = HOMES["torch"]

# Launchers' variables are read in topology; worker processes inherit the environment of their
# parent with one addition.
ENVIRONMENT_READERS = {
    "msdata/topology.py",
    "msdata/pack/pool.py",
    "msdata/cluster/doctor_command.py",
}

MAX_FILE_LINES = 400
MIN_FILE_LINES = 80
MAX_FUNCTION_LINES = 60
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "manager", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module, where, and whether the import runs with the importing module's."""

    target: str
    line: int
    is_at_import: bool
    is_for_types: bool


def source_files(*packages: str) -> list[Path]:
    return sorted(p for name in packages for p in (ROOT / name).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@functools.cache
def imports_of(path: Path) -> tuple[Import, ...]:
    return tuple(_walk(tree_of(path), is_at_import=True, is_for_types=False))


def _walk(node: ast.AST, *, is_at_import: bool, is_for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            for target in _targets(child):
                yield Import(target, child.lineno, is_at_import, is_for_types)
        at_import = is_at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                block = ast.Module([statement], [])
                yield from _walk(block, is_at_import=at_import, is_for_types=True)
            child = ast.Module(child.orelse, [])
        yield from _walk(child, is_at_import=at_import, is_for_types=is_for_types)


def _targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"line {node.lineno}: imports are absolute"
    assert node.module is not None
    # `from package import name` means the module of that name where there is one.
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if is_module(name) else node.module for name in names]


def edges(package: str) -> list[tuple[Path, str, Import]]:
    """All imports of a package's modules by each other; its root imports on demand."""
    return [
        (path, module_name(path), found)
        for path in source_files(package)
        for found in imports_of(path)
        if module_name(path) != package and found.target.startswith(f"{package}.")
    ]


def place(path: Path, found: Import) -> str:
    return f"{path.relative_to(ROOT)}:{found.line} imports {found.target}"


@pytest.mark.parametrize("package", ROOMS)
def test_imports_between_rooms_run_one_way(package: str) -> None:
    number = {room: i for i, room in enumerate(ROOMS[package])}
    faults = [
        place(path, found)
        for path, module, found in edges(package)
        if number[found.target.split(".")[1]] > number[module.split(".")[1]]
        and not found.is_for_types
    ]
    assert not faults, faults


def test_rooms_are_few_and_none_is_crowded() -> None:
    root = [p for p in (ROOT / "msdata").iterdir() if p.name != "__pycache__"]
    assert sum(p.suffix in (".py", ".c", ".pyi", ".md") for p in root) <= 8
    assert sum(p.is_dir() for p in root) <= 16
    counts = {f: len(list(f.glob("*.py"))) for p in source_files(*PACKAGES) for f in [p.parent]}
    crowded = {f"{f.relative_to(ROOT)}": n for f, n in counts.items() if n > MAX_MODULES_OF_A_ROOM}
    assert not crowded, crowded


def test_the_computing_modules_of_the_plan_know_numpy_topology_and_errors_only() -> None:
    allowed = ("numpy", "msdata.topology", "msdata.errors", "msdata.plan")
    faults = [
        place(path, found)
        for path in source_files("msdata/plan")
        if path.stem in COMPUTING
        for found in imports_of(path)
        if found.target.split(".")[0] not in sys.stdlib_module_names
        and not any(found.target == a or found.target.startswith(f"{a}.") for a in allowed)
    ]
    assert not faults, faults


def test_nothing_imports_a_command_but_the_command_line() -> None:
    faults = [
        place(path, found)
        for path, module, found in edges("msdata")
        if found.target.endswith(("command", "msdata.cli"))
        and not (module.endswith(".__main__") and found.target == "msdata.cli")
    ]
    assert not faults, faults


def test_packages_import_each_other_one_way() -> None:
    refused = {"msdata": {"mstrain", "benchmarks"}, "mstrain": {"benchmarks"}}
    faults = [
        place(path, found)
        for package, strangers in refused.items()
        for path in source_files(package)
        for found in imports_of(path)
        if found.target.split(".")[0] in strangers | {"tests"}
    ]
    assert not faults, faults


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in source_files(*PACKAGES):
        targets = {f.target for f in imports_of(path) if not f.is_for_types}
        graph[module_name(path)] = {t for t in targets if is_module(t)} - {"msdata"}
    # Whatever imports nothing that is left is in no circle: take it away until nothing changes.
    while done := {name for name, targets in graph.items() if not targets & graph.keys() - {name}}:
        graph = {name: targets for name, targets in graph.items() if name not in done}
    assert not graph, f"among these is a circle: {sorted(graph)}"


@pytest.mark.parametrize("package", ["msdata", "mstrain"])
def test_a_package_beyond_the_free_ones_has_one_home_and_is_imported_when_needed(
    package: str,
) -> None:
    faults = []
    for path in source_files(package):
        for found in imports_of(path):
            name = found.target.split(".")[0]
            if name in sys.stdlib_module_names or name in (
                *FREE_PACKAGES_OF[package],
                *("msdata", "mstrain"),
            ):
                continue
            place_of = path.relative_to(ROOT).as_posix()
            is_home = place_of in HOMES.get(name, set())
            is_late = not found.is_at_import or found.is_for_types or place_of in WHOLLY_MADE_OF
            if not is_home or not is_late:
                faults.append(place(path, found))
    assert not faults, faults


def test_importing_msdata_loads_no_heavy_package() -> None:
    heavy = ("torch", "pyarrow", "cv2", "h5py", "astropy", "mpi4py", "nvidia", "matplotlib")
    code = f"import msdata, sys; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


def test_settings_and_command_line_of_mstrain_need_no_torch() -> None:
    code = (
        "import mstrain.cli, mstrain.recipes, mstrain.overrides, sys; print('torch' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "False"


def test_the_environment_is_read_in_listed_files_only() -> None:
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in source_files("msdata", "mstrain")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    assert readers <= ENVIRONMENT_READERS, sorted(readers - ENVIRONMENT_READERS)


def test_no_module_has_an_empty_name() -> None:
    faults = [p for p in source_files(*PACKAGES, "tests") if p.stem in EMPTY_NAMES]
    assert not faults, faults


def test_files_and_functions_are_short() -> None:
    faults = []
    for path in source_files(*PACKAGES):
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            faults.append(f"{path.relative_to(ROOT)} has {num_lines} lines")
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                faults.append(f"{path.relative_to(ROOT)}: {node.name} has {length} lines")
    assert not faults, faults


def test_a_small_module_with_one_importer_says_why_it_stands_alone() -> None:
    importers: dict[str, set[str]] = {}
    for path in source_files(*PACKAGES):
        for found in imports_of(path):
            importers.setdefault(found.target, set()).add(module_name(path))
    faults = [
        str(path.relative_to(ROOT))
        for path in source_files(*PACKAGES)
        if not path.stem.startswith("__")
        and len(path.read_text(encoding="utf-8").splitlines()) < MIN_FILE_LINES
        and len(importers.get(module_name(path), set()) - {module_name(path)}) == 1
        and "stands alone" not in (ast.get_docstring(tree_of(path)) or "")
    ]
    assert not faults, faults


def is_bare(node: ast.AST) -> bool:
    """Whether it only names another library's method, as in a protocol."""
    return [ast.unparse(statement) for statement in getattr(node, "body", ())] == ["..."]


def public_definitions(
    body: list[ast.stmt],
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or is_bare(node):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            yield from public_definitions(node.body)


def test_everything_public_has_a_docstring() -> None:
    faults = []
    for path in source_files(*PACKAGES):
        if not ast.get_docstring(tree_of(path)) and path.read_text(encoding="utf-8").strip():
            faults.append(str(path.relative_to(ROOT)))
        faults += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in public_definitions(tree_of(path).body)
            if not ast.get_docstring(node)
        ]
    assert not faults, faults
