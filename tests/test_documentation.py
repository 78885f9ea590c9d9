"""What README, docs, CONTRIBUTING and CHANGELOG name exists: links, commands, options, messages."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import msdata.cli
import mstrain.cli
from msdata.cli import COMMANDS
from mstrain.overrides import apply_overrides
from mstrain.recipes import RECIPES

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(
        page
        for name in ("docs", "msdata", "mstrain", "benchmarks")
        for page in (ROOT / name).rglob("*.md")
    ),
]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
# What users read, from the README on.
GUIDES = [README, *sorted(DOCS.rglob("*.md"))]
# A user finds these from the start page in two clicks at most.
TWO_CLICKS = {"guides/own-arrays.md", "guides/slurm.md", "troubleshooting.md"}
# Words in usage lines that stand for a number or a choice where the parser wants a real one.
EXAMPLES = {"N": "3", "S": "0"}


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_of(page: Path) -> Iterator[str]:
    """Lines of code blocks, and code spans of one line."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`]+)`", prose.replace("\n", " "))


def msdata_commands(page: Path) -> list[str]:
    """Every `msdata SUBCOMMAND ...` with arguments, from after the program's name."""
    starts = rf"(?:^|\s)msdata ((?:{'|'.join(COMMANDS)})\s[^`'#]*)"
    return [m[1].strip() for line in code_of(page) for m in [re.search(starts, line)] if m]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"msdata {command}", exit_on_error=False)
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    return parser


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options of a command and of its actions."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options_of(inner)


def mstrain_parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"mstrain {command}")
    importlib.import_module(mstrain.cli.COMMANDS[command][0]).add_arguments(parser)
    return parser


# Drawn when the site is built, by a hook of mkdocs.
DRAWN = {"report.html"}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:", t)]
    missing = [f for f in files if f and f not in DRAWN and not (page.parent / f).exists()]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_their_options_are_accepted_by_the_parser(page: Path) -> None:
    for line in msdata_commands(page):
        if "──" in line:
            continue  # the picture
        command, *words = [EXAMPLES.get(word, word) for word in shlex.split(line)]
        try:
            parser_of(command).parse_args(words)
        except (SystemExit, argparse.ArgumentError) as error:
            pytest.fail(f"{page_id(page)}: msdata {line}: {error}")


@pytest.mark.parametrize("page", [README, DOCS / "reference" / "cli.md"], ids=page_id)
def test_readme_and_reference_show_every_command(page: Path) -> None:
    shown = {line.split()[0] for line in msdata_commands(page)}
    assert shown == set(COMMANDS)


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_start_page_leads_in_two_clicks_to_own_arrays_two_nodes_and_errors() -> None:
    found = linked_pages(DOCS / "index.md")
    found |= {page for first in found for page in linked_pages(first)}
    assert {page.relative_to(DOCS).as_posix() for page in found} >= TWO_CLICKS


def linked_pages(page: Path) -> set[Path]:
    targets = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets}


def test_the_architecture_page_names_every_room_and_only_modules_that_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rooms = {span for row in re.findall(r"^\| (`[^|]*)\|", text, re.M) for span in row.split("`")}
    packages = ("msdata", "mstrain")
    there = {
        path.stem
        for name in packages
        for path in (ROOT / name).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    # What starts a command holds nothing else.
    starters = {"train", "evaluate", "predict", "perceive", "calibrate", "embed", "attribute"}
    assert rooms >= there - {"__init__", "__main__", *starters}
    stops = re.findall(r"`(?:mstrain\.)?([a-z_]+)\.([a-z_]+(?:\.[a-z_]+)*)`", text)
    stops = [stop for stop in stops if stop[0] in there and stop[1] != "json"]
    missing = [
        ".".join(stop)
        for stop in stops
        if not any(
            (ROOT / p / stop[0] / f"{stop[1].replace('.', '/')}.py").exists() for p in packages
        )
    ]
    assert len(stops) >= 15
    assert not missing, missing


@pytest.mark.parametrize("package", [msdata, mstrain], ids=lambda package: package.__name__)
def test_the_reference_shows_every_public_name(package: types.ModuleType) -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"\b{package.__name__}\.(\w+)", text))
    assert named >= set(package.__all__), set(package.__all__) - named


def test_every_page_has_a_title() -> None:
    untitled = [
        page_id(page)
        for page in GUIDES
        if not page.read_text(encoding="utf-8").startswith(("# ", '--8<-- "msdata/'))
    ]
    assert not untitled


def test_options_named_by_themselves_belong_to_a_command() -> None:
    parsers = [parser_of(command) for command in COMMANDS]
    parsers += [mstrain_parser_of(command) for command in mstrain.cli.COMMANDS]
    known = {option for parser in parsers for option in options_of(parser)}
    named = {
        word.partition("=")[0]
        for page in GUIDES
        for span in code_of(page)
        if re.match("--[a-z]", span)  # not the --8<-- of an included file
        for word in span.split()
        if word.startswith("--")
    }
    assert named
    assert named <= known, named - known


def test_make_targets_that_the_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    named = {
        word
        for page in PAGES
        for line in code_of(page)
        for word in re.findall(r"^make ([a-z]+)", line)
    }
    assert {"demo", "test", "lint", "bench", "check"} <= targets
    assert named <= targets, named - targets


def test_modules_that_the_pages_run_exist() -> None:
    modules = {
        m for p in PAGES for line in code_of(p) for m in re.findall(r"python -m (\S+)", line)
    }
    files = {m: ROOT / m.replace(".", "/") for m in modules}
    missing = [
        m
        for m, path in files.items()
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()
    ]
    assert modules
    assert not missing, missing


def literals(folder: Path) -> str:
    """All text literals of a package's code, f-strings with `...` for what is filled in."""
    texts = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "..." for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_of_the_troubleshooting_table_are_said_by_the_code() -> None:
    table = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)
    said = (
        literals(ROOT / "msdata")
        + literals(ROOT / "mstrain")
        + (ROOT / "Makefile").read_text(encoding="utf-8")
    )
    said = said.replace("$(PYTHON)", "python3")
    assert len(rows) > 50
    unsaid = [m for m in rows for part in m.split("...") if part.strip() and part not in said]
    assert not unsaid, unsaid


def test_the_worked_examples_of_a_plan_are_what_the_commands_print(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (DOCS / "guides" / "plan.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, flags=re.M | re.S)
    examples = [i for i, block in enumerate(blocks) if "--by-nodes" in block]
    assert len(examples) == 2
    for at in examples:
        command = blocks[at].replace("\\\n", " ")
        assert msdata.cli.main(shlex.split(command)[1:]) == 0
        assert blocks[at + 1].count("\n") == 7
        printed = capsys.readouterr().out
        assert blocks[at + 1] in printed
    note = re.findall("`(note: .*?)`", page)
    assert len(note) == 1
    assert note[0] in printed


@pytest.mark.parametrize("module", ["msdata", "mstrain"])
def test_both_commands_say_their_version(module: str) -> None:
    run = [sys.executable, "-m", module, "--version"]
    found = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert re.fullmatch(rf"{module} \d+\.\d+\.\d+\n", found.stdout)


def test_mstrain_without_a_command_says_what_there_is_and_exits_with_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        mstrain.cli.main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def mstrain_commands(page: Path) -> list[str]:
    """Every `mstrain SUBCOMMAND ...`, also as `-m mstrain.SUBCOMMAND`, from the subcommand on."""
    starts = rf"(?:^|\s)mstrain[. ]((?:{'|'.join(mstrain.cli.COMMANDS)})\s[^`#]*)"
    return [m[1].strip() for line in code_of(page) for m in [re.search(starts, line)] if m]


@pytest.mark.parametrize("page", [README, DOCS / "reference" / "cli.md"], ids=page_id)
def test_readme_and_reference_show_every_command_of_mstrain(page: Path) -> None:
    shown = {line.split()[0] for line in mstrain_commands(page)}
    assert shown == set(mstrain.cli.COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_of_mstrain_are_accepted_with_their_settings(page: Path) -> None:
    for line in mstrain_commands(page):
        words = shlex.split(line.replace("[", "").replace("]", ""))
        words = [w for w in words if w not in ("...", "key=value")]
        try:
            args = mstrain.cli.parse(words)
        except SystemExit as ended:
            # `--settings` and `--help` end well by themselves.
            assert not ended.code, line
            continue
        if words[0] == "train" and args.recipe in RECIPES:
            apply_overrides(RECIPES[args.recipe](), args.settings)
