"""Words that messages, help, docstrings, comments and pages avoid; CONTRIBUTING.md says why."""

import re
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


def test_nothing_has_words_to_avoid() -> None:
    roots = [ROOT / name for name in ("msdata", "mstrain", "benchmarks", "slurm", "docs")]
    texts = [p for root in roots for p in root.rglob("*") if p.suffix in TEXTS]
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in [*texts, *ROOT.glob("*file"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if WORDS.search(line)
    ]
    assert not found, "\n".join(found)


def test_pages_are_in_american_english() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    prose = {p.name: re.sub(r"`[^`]*`", "", p.read_text(encoding="utf-8")) for p in pages}
    british = {name: re.findall(BRITISH, text) for name, text in prose.items()}
    assert not any(british.values()), british
