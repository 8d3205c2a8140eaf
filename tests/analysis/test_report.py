"""The report: one self-contained file, the same from the run folders and from the archive."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pyarrow.parquet as pq
import pytest

from hoard.analysis import comparisons, interactive, report, results, tables
from hoard.records.errors import BadInput


class Reader(HTMLParser):
    """Collects links, text and unbalanced tags."""

    def __init__(self):
        super().__init__()
        self.links, self.words, self.open, self.scripts = [], [], [], 0

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        self.scripts += tag == "script"
        if tag not in ("meta", "img", "link", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_report_is_one_file_that_needs_no_network(quick):
    paths = report.build(quick.root, "quick")
    html = paths.html.read_text()
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    assert reader.scripts == 3  # the curves' numbers, the library that draws them, the page's own
    pictures = [link for link in reader.links if not link.startswith("#")]
    assert len(pictures) == 5
    assert all(link.startswith("data:image/png;base64,") for link in pictures)
    own = re.sub(r'src="data:[^"]*"|/\*! https://github.com/leeoniya/uPlot [^*]*\*/', "", html)
    assert not re.search(r"https?:|@import|url\(", own)
    assert "default-src 'none'" in html


def test_links_inside_lead_somewhere(quick):
    html = report.build(quick.folder).html.read_text()
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_from_a_number_down_to_its_run(quick):
    html = report.build(quick.folder).html.read_text()
    assert "runs/iql/hoard-acrobot-expert-v0/2-0123456789ab" in html
    command = "hoard train iql --dataset hoard/acrobot/expert-v0 --seed 2 --expectile 0.9 --updates 10000"
    assert f"<code>{command}</code>" in html
    assert "failed: RuntimeError: &lt;b&gt;loss" in html


def test_options_of_a_command():
    cell = {"algo": "iql", "dataset": "d", "seed": 3, "overrides": {"hidden": [64, 64], "layer_norm": True, "lr": 1e-3}}
    assert (
        interactive.command(cell) == "hoard train iql --dataset d --seed 3 --hidden 64 64 --layer-norm true --lr 0.001"
    )
    elsewhere = {
        "algo": "my_iql",
        "file": "../../mine/my_iql.py",
        "dataset": "d",
        "seed": 0,
        "overrides": {"packed": 3},
    }
    assert interactive.command(elsewhere) == (
        "hoard train my_iql.py --dataset d --seed 0  # here among 3 seeds: hoard bench --pack"
    )


def test_verdicts_stand_on_top(quick):
    paths = report.build(quick.folder)
    html = " ".join(paths.html.read_text().split())
    assert html.index("Who wins where") < html.index("Last scores")
    assert "hoard/pendulum/mixed-v0</strong>: iql has the highest mean" in html
    assert "Who wins where" in paths.text
    assert "| dataset | best | compared with | ahead by [95 %] | verdict on the best |" in paths.markdown.read_text()


def test_latex(quick):
    text = report.build(quick.folder).latex.read_text()
    assert r"\toprule" in text
    assert r"$\pm$" in text
    assert r"[95 \% bootstrap]" in text
    assert text.count(r"\\") == 1 + 12


def test_report_tells_all(quick):
    text = " ".join(report.build(quick.folder).html.read_text().split())
    for fact in (
        "hoard bench quick SEEDS=5", "0123abcd", "torch 2.9.0", "Linux x86_64", "5f5f5f5f5f5f5f5f",
        "43 of 45 finished", "4/5", "all 3 datasets", "target=0.9", "expectile = 0.9, updates = 10000",
        "ddof = 1", "10,000 resamples", "75 / 90 / 93 %",
    ):  # fmt: skip
        assert fact in text
    assert "RuntimeError: &lt;b&gt;loss&lt;/b&gt; is not finite" in text  # errors are text, never markup
    assert "<b>" not in text


def test_report_from_the_archive_is_the_same(quick, archive):
    """D26: the two committed files rebuild every table and figure, and are themselves left alone."""
    before = (archive / "episodes.parquet").read_bytes()
    live, rebuilt = report.build(quick.folder), report.build(archive)
    for name in ("markdown", "csv", "curves", "comparison", "html"):
        assert getattr(live, name).read_bytes() == getattr(rebuilt, name).read_bytes(), name
    assert rebuilt.episodes.read_bytes() == before == live.episodes.read_bytes()


def test_written_files(quick):
    paths = report.build(quick.folder)
    names = {str(path.relative_to(quick.folder)) for path in quick.folder.rglob("*") if path.is_file()}
    assert names == {
        "cells.json", ".report.json", "episodes.parquet", "table.md", "table.csv", "table.tex", "report.html",
        "figures/curves.png", "figures/comparison.png", "figures/improvement.png", "figures/profiles.png",
        "figures/targets.png",
    }  # fmt: skip
    assert len(pd.read_csv(paths.csv)) == 12
    assert paths.markdown.read_text().startswith("## Last scores\n\n| dataset | method |")
    assert len(pd.read_parquet(paths.episodes)) == len(results.load(quick.folder).episodes)


def test_report_of_a_sweep_where_nothing_finished(sweep):
    sweep.cell("iql", "hoard/pendulum/mixed-v0", 0, status="failed", error="Traceback:\n  deep\nMemoryError")
    text = report.build(sweep.write()).html.read_text()
    assert "0 of 1 finished" in text
    assert "Traceback:\n  deep\nMemoryError" in text


def test_summary_for_the_terminal(quick):
    text = report.build(quick.folder).text
    assert text.startswith("Last scores\n\ndataset ")
    assert "all 3 datasets" in text
    assert "RuntimeError" in text
    assert "ddof = 1" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_command_line(quick):
    command = [sys.executable, "-m", "hoard.analysis.report", str(quick.folder), "--metric", "return"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(quick.folder / "report.html")
    assert "raw, undiscounted return" in (quick.folder / "report.html").read_text()


def test_damaged_results_stop_the_report(quick):
    """D21: no report at all rather than one that leaves a run out."""
    run = next(cell["run"] for cell in quick.cells if cell["status"] == "finished")
    (quick.root / run / "episodes.parquet").write_bytes(b"not parquet")
    with pytest.raises(SystemExit) as caught:
        report.main([str(quick.folder)])
    assert caught.value.code == 1
    assert not (quick.folder / "report.html").exists()


def test_unknown_provenance_is_no_obstacle(quick):
    content = json.loads((quick.folder / "cells.json").read_text())
    del content["provenance"], content["command"]
    (quick.folder / "cells.json").write_text(json.dumps(content))
    assert "<dt>revision" not in report.build(quick.folder).html.read_text()


class TestUpToDate:
    """An unchanged report is not built again; a stale one is never shown."""

    @pytest.fixture
    def built(self, quick, monkeypatch):
        """The suite with its report, and a list that counts how often one was built since."""
        from hoard.analysis import page

        report.build(quick.folder)
        calls, write = [], page.write
        monkeypatch.setattr(page, "write", lambda *args: calls.append(args) or write(*args))
        return quick, calls

    def test_nothing_changed(self, built):
        quick, calls = built
        before = {path: path.stat().st_mtime_ns for path in quick.folder.rglob("*")}
        again = report.build(quick.folder)
        assert not calls
        assert "all 3 datasets" in again.text
        assert before == {path: path.stat().st_mtime_ns for path in quick.folder.rglob("*")}

    @pytest.mark.parametrize(
        "change", ["cells", "episodes", "same size and time", "output gone", "output changed", "metric", "all", "stamp"]
    )
    def test_anything_changed(self, built, change, monkeypatch):
        quick, calls = built
        run = quick.root / next(cell["run"] for cell in quick.cells if cell["status"] == "finished")
        options = {}
        if change == "cells":
            quick.write(command="another")
        elif change == "episodes":
            (run / "episodes.parquet").write_bytes((run / "episodes.parquet").read_bytes())
        elif change == "same size and time":
            path = run / "episodes.parquet"
            times = path.stat().st_atime_ns, path.stat().st_mtime_ns
            path.write_bytes(path.read_bytes())
            os.utime(path, ns=times)
        elif change == "output gone":
            (quick.folder / "table.md").unlink()
        elif change == "output changed":
            (quick.folder / "report.html").write_text("mine")
        elif change == "metric":
            options = {"metric": "return"}
        elif change == "all":
            options = {"everything": True}
        elif change == "stamp":
            (quick.folder / report.STAMP).write_text("{")
        report.build(quick.folder, **options)
        assert len(calls) == 1
        report.build(quick.folder, **options)
        assert len(calls) == 1

    def test_other_code_or_libraries(self, built, monkeypatch):
        quick, calls = built
        monkeypatch.setattr(report.metadata, "version", lambda name: "99")
        report.build(quick.folder)
        assert len(calls) == 1

    def test_what_changes_while_it_is_built_is_seen(self, built, monkeypatch):
        from hoard.analysis import results

        quick, calls = built
        load = results.load

        def slow(*args, **options):
            loaded = load(*args, **options)
            quick.write(command="changed meanwhile")
            return loaded

        monkeypatch.setattr(results, "load", slow)
        report.build(quick.folder, metric="return")
        monkeypatch.setattr(results, "load", load)
        report.build(quick.folder, metric="return")
        assert len(calls) == 2
        assert "changed meanwhile" in (quick.folder / "report.html").read_text()

    def test_an_archive_and_single_runs(self, archive, quick, monkeypatch):
        for folder in (archive, quick.folder):
            first = report.build(folder)
            with monkeypatch.context() as patch:
                patch.setattr("hoard.analysis.page.write", lambda *_: pytest.fail("built again"))
                assert report.build(folder) == first
        table = pq.ParquetFile(archive / "episodes.parquet").read()
        results.write_table(table, archive)
        assert report.build(archive) == report.build(archive)

    def test_it_needs_nothing_heavy(self, quick):
        report.build(quick.folder)
        program = (
            "import sys; from hoard.analysis import report; report.build(sys.argv[1])\n"
            "print([name for name in ('torch', 'pandas', 'pyarrow', 'matplotlib', 'numpy', 'scipy', 'jinja2') "
            "if name in sys.modules])"
        )
        run = [sys.executable, "-c", program, str(quick.folder)]
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_report_needs_no_torch(quick):
    program = (
        "import sys; from hoard.cli import main\n"
        "try: main(['report', sys.argv[1]])\n"
        "finally: print('torch' in sys.modules, 'hoard.analysis.page' in sys.modules)"
    )
    run = [sys.executable, "-c", program, str(quick.folder)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.endswith("False True\n")


def test_results_are_loaded_once(quick, monkeypatch):
    calls, load = [], results.load
    monkeypatch.setattr(results, "load", lambda *args, **options: calls.append(args) or load(*args, **options))
    report.build(quick.folder)
    assert len(calls) == 1


def test_the_suite_says_what_it_compares(quick):
    quick.write(metric="return")
    assert "raw, undiscounted return" in " ".join(report.build(quick.folder).text.split())
    with pytest.raises(BadInput, match="unknown metric 'best'"):
        report.build(quick.folder, metric="best")


def test_for_readers_who_do_not_see_the_page(quick):
    """Headers have a scope, tables a caption and a scroll area that the keyboard reaches, figures words."""
    html = report.build(quick.folder).html.read_text()
    heads = re.findall(r"<th\b[^>]*>", html)
    assert heads
    assert all('scope="col"' in head for head in heads)
    assert html.count("<table ") == html.count("<caption>") == html.count('class="scroll" tabindex="0" role="region"')
    comparison, curves, improvement, profiles, targets = re.findall(r'<img alt="([^"]*)"', html)
    assert "The highest is" in improvement
    assert "Above 50: bc" in profiles
    assert re.search(r"rcsl on hoard/pendulum/mixed-v0: [\d.]+ when asked for 0.5, [\d.]+ for 0.9", targets)
    assert html.count('class="chart"') == html.count('role="img" aria-label="Learning curves on ') == 3
    assert "On hoard/pendulum/mixed-v0 iql has the highest mean" in comparison
    assert re.search(
        r"hoard/pendulum/mixed-v0, over 10,000 gradient updates, first to last evaluation: bc [\d.-]+ to", curves
    )
    assert "max-width: 40rem" in html
    assert "prefers-color-scheme: dark" in html


def test_columns_are_classified_once_a_table(quick, monkeypatch):
    table = tables.score_table(results.load(quick.folder))
    assert table.columns is table.columns
    assert table.rows is table.rows


class TestOddResults:
    """One seed, ties, missing and diverged seeds, unequal episodes: each has a stated result, and the page is built."""

    PENDULUM = "hoard/pendulum/mixed-v0"

    def verdict(self, sweep, method):
        found = comparisons.rankings(results.load(report.build(sweep.write()).folder))
        return found[0].others[method].text

    def test_one_seed(self, sweep):
        sweep.cell("iql", self.PENDULUM, 0, curve=[50.0, 90.0])
        sweep.cell("bc", self.PENDULUM, 0, curve=[50.0, 40.0])
        assert self.verdict(sweep, "bc") == "no verdict: one seed shows no spread"

    def test_ties(self, sweep):
        for seed in range(3):
            sweep.cell("iql", self.PENDULUM, seed, curve=[90.0])
            sweep.cell("bc", self.PENDULUM, seed, curve=[90.0])
            sweep.cell("rcsl", self.PENDULUM, seed, curve=[30.0])
        assert self.verdict(sweep, "bc") == "not told apart with 3 seeds"
        assert "agree to the last digit" in self.verdict(sweep, "rcsl")

    def test_diverged_seeds_count_with_their_floor(self, sweep):
        for seed in range(5):
            lost = {"status": "failed", "error": "FloatingPointError: nan in losses/q"} if seed > 2 else {}
            sweep.cell("iql", self.PENDULUM, seed, curve=[10.0] if lost else [10.0, 90.0], final=not lost, **lost)
            sweep.cell("bc", self.PENDULUM, seed, curve=[40.0, 60.0 + seed])
        assert comparisons.rankings(results.load(sweep.write()))[0].leader == "bc"  # 62 before (3 * 90 + 2 * 0) / 5
        assert self.verdict(sweep, "iql").startswith("not told apart with 5 seeds; about ")

    def test_missing_cells_and_unequal_episodes(self, sweep):
        for seed in range(4):
            sweep.cell("iql", self.PENDULUM, seed, curve=[90.0 + seed], count=4 + seed)
            lost = {"status": "failed", "error": "MemoryError"} if seed == 3 else {"curve": [20.0 + seed]}
            sweep.cell("bc", self.PENDULUM, seed, **lost)
        sweep.cell("rcsl", self.PENDULUM, 0, status="pending")
        assert self.verdict(sweep, "bc") == "better"  # of the seeds that are there, by Welch's test
        html = report.build(sweep.folder).html.read_text()
        assert "4-7" in html  # episodes of a seed
        assert "failed: MemoryError" in html
