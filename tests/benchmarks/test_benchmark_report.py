"""The report opens in a browser with every chart drawn; the guard flags ratios that fell."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from browsing import needs_browser, open_page
from hypothesis import given
from hypothesis import strategies as st

import msdata.cli
from benchmarks.__main__ import main
from benchmarks.comparison import is_below
from benchmarks.harness import compare, json_text, run_timed, take_turns, write_result
from benchmarks.report import Chart, Series, Shown, Table, draw, page

BARS = Chart(
    title="bars",
    kind="bars",
    labels=["ours <b>", "a peer"],
    series=[Series(name="hot", values=[9.0, 3.0], least=[8.0, 2.5], greatest=[9.5, 3.5])],
)
LINES = Chart(
    title="lines",
    kind="lines",
    is_log=True,
    series=[
        Series(name="measured", x=[1, 2, 4], values=[10.0, 19.0, 37.0]),
        Series(name="forecast", x=[1, 2, 4], values=[10.0, 20.0, 40.0]),
    ],
)
TABLE = Table(
    title="rates", columns=("who", "samples/s"), rows=[["a|b", 1234.5], ["c", None]], in_readme=True
)
SHOWN = Shown(title="How fast?", sentences=["Ours is 3 < 4."], tables=[TABLE], charts=[BARS, LINES])


def write_shown(folder: Path, name: str = "loaders", **more: Any) -> Path:
    result = {"shown": SHOWN.to_json(), "quick": True, **more}
    return write_result(name, result, command="python -m benchmarks", folder=folder)


def ratio(median: float, scatter: float = 0.02) -> dict[str, float]:
    return {"median": median, "least": median - scatter, "greatest": median + scatter}


@needs_browser
def test_a_browser_draws_every_chart_and_its_console_stays_silent(tmp_path: Path) -> None:
    write_shown(tmp_path / "out")
    assert main(["report", str(tmp_path / "out")]) == 0
    opened = open_page(tmp_path / "out" / "report.html", tmp_path / "profile")
    assert opened.console == []
    assert 'data-charts-drawn="2 of 2"' in opened.dom
    assert re.search(r'id="faults"></p>', opened.dom)


@needs_browser
def test_the_page_says_so_itself_where_a_chart_is_empty_or_a_script_fails(tmp_path: Path) -> None:
    result = json.loads(write_shown(tmp_path).read_text())
    text = page([result]).replace('id="mark', 'id="none')
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</body>", "<script>console.error('ill')</script></body>"))
    opened = open_page(broken, tmp_path / "profile")
    assert "2 charts of this page are empty" in opened.dom
    assert any("ill" in line for line in opened.console)


def test_a_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(tmp_path: Path) -> None:
    text = page([json.loads(write_shown(tmp_path).read_text())])
    assert not re.search(r"(src|href)\s*=\s*[\"']?(?!data:)\w", text)
    assert "ours &lt;b&gt;" in text
    assert "ours <b>" not in text
    assert "Ours is 3 &lt; 4." in text


def test_the_markdown_holds_the_tables_for_the_readme_and_the_sentences(tmp_path: Path) -> None:
    write_shown(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| a\\|b | 1,234 |" in text
    assert "| c | – |" in text
    assert "- Ours is 3 < 4." in text


def test_questions_stand_in_their_order_whatever_their_files_are_called(tmp_path: Path) -> None:
    for name in ("scale", "cache", "limit", "another"):
        write_shown(tmp_path, name)
    main(["report", str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert text.count("<section>") == 4


def test_what_is_shown_survives_its_way_through_the_file(tmp_path: Path) -> None:
    content = json.loads(write_shown(tmp_path).read_text())
    again = Shown.from_json(content["shown"])
    assert [draw(c) for c in again.charts] == [draw(BARS), draw(LINES)]
    assert {"type", "options"} <= content["host"]["file_system"].keys()


@pytest.mark.parametrize("kind", ["bars", "lines"])
@pytest.mark.parametrize("is_log", [True, False])
def test_values_of_any_size_are_drawn_without_a_warning(kind: str, is_log: bool) -> None:
    for values in ([1e-6, 1e9], [5.0], [3.0, 3.0, 3.0]):
        series = Series(name="s", values=values, x=[k + 1.0 for k in range(len(values))])
        labels = [f"$k_{k}" for k in range(len(values))]
        svg = draw(Chart(title="t", kind=kind, series=[series] * 2, labels=labels, is_log=is_log))
        assert svg.startswith('<svg class="chart"')
        assert svg.count('id="mark') == (2 * len(values) if kind == "bars" else 2)
        assert all(label in svg for label in labels if kind == "bars")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_json_in_short_lines_is_the_same_json(value: Any) -> None:
    text = json_text([value] * 9)
    assert json.loads(text) == [value] * 9


def test_a_ratio_that_fell_by_more_than_its_interval_is_flagged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"workload": "mantis", "sample_nbytes": 1}
    old = write_shown(tmp_path, "a", ratios={"ours hot": ratio(0.9), "peer": ratio(0.5)}, **common)
    content = json.loads(old.read_text())
    new = tmp_path / "new.json"

    new.write_text(json.dumps(content))
    assert main(["compare", str(old), str(new)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"^ours hot +0.900 .* 1.000 +not below *$", lines[1])
    assert lines[-1] == "2 ratios compared, 0 below"
    content["ratios"]["ours hot"] = ratio(0.7)
    new.write_text(json.dumps(content))
    assert main(["compare", str(old), str(new)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"0.900 \(0.880 to 0.920\) +0.700 \(.*\) +0.778 +BELOW *\n", said)
    del content["ratios"]["ours hot"]
    new.write_text(json.dumps(content))
    assert main(["compare", str(old), str(new)]) == 1
    assert "not measured now" in capsys.readouterr().out


def test_results_of_contestants_are_compared_by_their_ratios_to_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = take_turns({"ours": lambda: 3.0, "bare": lambda: 4.0}, 2)
    paths = [
        write_result(name, {"hot": {"tar": compare(rates, ["bare"])}}, command="c", folder=tmp_path)
        for name in ("old", "new")
    ]
    content = json.loads(paths[1].read_text())
    paths[1].write_text(json.dumps({**content, "benchmark": "old"}))
    assert main(["compare", *map(str, paths)]) == 0
    assert "hot: tar: ours, of bare  0.750" in capsys.readouterr().out


@pytest.mark.skipif(not Path(".git").exists(), reason="not a clone")
def test_a_commits_result_is_compared_with_todays(capsys: pytest.CaptureFixture[str]) -> None:
    name = "benchmarks/results/peer_rates.json"
    assert main(["compare", f"HEAD:{name}", name]) == 0
    assert "0 below" in capsys.readouterr().out
    assert main(["compare", "HEAD:benchmarks/results/nothing.json", name]) == 2


@given(st.floats(0.1, 1), st.floats(0, 0.2), st.floats(-0.5, 0.5), st.floats(0, 0.2))
def test_a_fall_is_flagged_only_where_neither_interval_explains_it(
    median: float, scatter: float, change: float, new_scatter: float
) -> None:
    found = is_below(ratio(median, scatter), ratio(median + change, new_scatter))
    if change > -scatter or change > -new_scatter:
        assert not found
    if change < -1.01 * max(scatter, new_scatter) - 1e-9:
        assert found


def test_results_that_mean_different_things_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios = {"r": ratio(1)}
    old = write_shown(tmp_path / "1", workload="mantis", ratios=ratios)
    new = write_shown(tmp_path / "2", workload="large", ratios=ratios)
    assert main(["compare", str(old), str(new)]) == 2
    assert "workload is 'mantis'" in capsys.readouterr().err
    assert main(["compare", str(old), str(write_shown(tmp_path / "3"))]) == 2
    assert "holds no ratios" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["limit", "--data", "nowhere", "--out", "o"], "nowhere is not an msdata dataset"),
        (["limit", "--mock", "0", "--out", "o"], "--mock must be at least 1, got 0"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "."], "holds nothing to show"),
        (["compare", "nowhere.json", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_contestants_take_turns_and_warm_ups_do_not_count() -> None:
    seen: list[str] = []

    def contestant(name: str) -> Any:
        def run() -> float:
            seen.append(name)
            return float(len(seen))

        return run

    names = "abc"
    rates = take_turns({n: contestant(n) for n in names}, 4, warm_ups=2)
    turns = ["".join(seen[k : k + 3]) for k in range(0, len(seen), 3)]
    assert all(sorted(turn) == list(names) for turn in turns)
    assert len(turns) == 6
    assert {n: len(r) for n, r in rates.items()} == dict.fromkeys(names, 4)
    assert min(min(r) for r in rates.values()) > 6


def test_a_process_that_is_timed_finds_compiled_modules_and_its_exit_code_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = "import sys, msdata.cli; sys.exit(sys.dont_write_bytecode)"
    seen: list[int] = []
    found = run_timed([sys.executable, "-c", code], watch=seen.append)
    assert found["processor_seconds"] > 0
    assert found["seconds"] > 0
    assert seen
    assert Path(msdata.cli.__cached__).is_file()
    with pytest.raises(SystemExit, match="3"):
        run_timed([sys.executable, "-c", "raise SystemExit(3)"])
