"""Words that messages, help, docstrings, comments and pages avoid; CONTRIBUTING.md says why."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXTS = {".py", ".pyi", ".c", ".sh", ".md", ".toml"}
PER_EPOCH = r"(?:hours?|minutes?|seconds?|once|times?|bytes|samples|lines?|JSON) an epoch"
WORDS = re.compile(
    r"\b(?:(?:is|are) no|go(?:es)? on|mend(?:s|ed|ing)?|foretells?|foretelling|foretold|nobody"
    rf"|makes? no sense|a wish|anew|begun with|{PER_EPOCH})\b",
    re.IGNORECASE,
)
BRITISH = r"catalogue|licence|neighbour|colour|centre|synchronis|optimis|behaviour|flavour"
# Lines that are left, by folder. Numbers only fall; the entry of a clean folder is removed.
LEFT = {"benchmarks": 91, "benchmarks/results": 4}


def lines_with_words() -> Counter[str]:
    roots = [ROOT / name for name in ("msdata", "mstrain", "benchmarks", "slurm", "docs")]
    texts = [p for root in roots for p in root.rglob("*") if p.suffix in TEXTS]
    found: Counter[str] = Counter()
    for path in [*texts, *ROOT.glob("*file"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        lines = path.read_text(encoding="utf-8").splitlines()
        folder = "/".join(path.relative_to(ROOT).parts[:-1][:2])
        found[folder] += sum(bool(WORDS.search(line)) for line in lines)
    return +found


def test_no_folder_has_more_lines_with_words_to_avoid_than_are_left() -> None:
    found = lines_with_words()
    more = {folder: num for folder, num in found.items() if num > LEFT.get(folder, 0)}
    assert not more, f"lines with words to avoid, by folder: {more}"


def test_folders_that_are_clean_are_not_listed() -> None:
    assert not LEFT.keys() - lines_with_words().keys()


def test_pages_are_in_american_english() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    prose = {p.name: re.sub(r"`[^`]*`", "", p.read_text(encoding="utf-8")) for p in pages}
    british = {name: re.findall(BRITISH, text) for name, text in prose.items()}
    assert not any(british.values()), british
