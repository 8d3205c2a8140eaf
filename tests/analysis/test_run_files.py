"""Films, paths and provenance in the report: shown where they are, within limits, and never asked for."""

import html
import json
import re

import numpy as np
import pytest

from hoard.analysis import plots, report, results, run_files

DATASET = "hoard/pendulum/mixed-v0"


def test_films_and_paths_are_in_the_page_with_words(filmed):
    page = report.build(filmed.folder).html.read_text()
    alts = re.findall(r'<img loading="lazy"[^>]*alt="([^"]*)"', page)
    assert [html.unescape(alt) for alt in alts] == [
        "Film <b>of</b> bc.",
        "Film <b>of</b> iql.",
        f"Paths of iql, seed 0 on {DATASET}; the file does not say what it shows.",
    ]
    assert page.count('data-film="data:image/gif;base64,') == 2
    assert page.count('class="play" hidden') == 2  # until the script is there
    assert '<a href="#film-1">Film of bc, seed 0</a>' in page
    assert 'id="film-1"' in page
    assert f"Medians on {DATASET}: data -500, bc " in page
    assert "The 5 runs: seed, folder, command, provenance, and 3 pictures" in page
    # every run says where it comes from
    line = "code ababababab+changes · data 5f5f5f5f5f5f · torch 2.9.0 · on Linux, &lt;2&gt; cores"
    assert page.count(line) == sum(cell["run"] is not None for cell in filmed.cells)


def test_a_new_film_makes_a_new_report(filmed, monkeypatch):
    first = report._stamp(filmed.folder, None, False)
    path = filmed.root / filmed.cells[2]["run"] / "policy.gif"
    path.write_bytes(path.read_bytes())
    assert report._stamp(filmed.folder, None, False) != first
    monkeypatch.setattr(run_files, "FILE_LIMIT", 10)
    page = report.build(filmed.folder).html.read_text()
    assert "data-film" not in page
    assert page.count("<p>Left out of the page") == 1


def test_what_is_too_much_is_named(filmed, monkeypatch):
    loaded = results.load(filmed.folder, everything=True)
    runs = run_files.folders(loaded, filmed.folder)
    sizes = [path.stat().st_size for path in sorted(filmed.root.rglob("policy.gif"))]
    monkeypatch.setattr(run_files, "LIMIT", sum(sizes))
    shown, left = run_files.pictures(loaded, runs)
    assert {number: len(own) for number, own in shown.items()} == {0: 1, 2: 1}
    assert left[0].startswith("Left out of the page, in which a picture may have 1,000 kB")
    assert left[0].endswith("paths.png.")
    monkeypatch.setattr(run_files, "FILE_LIMIT", 10)
    assert run_files.pictures(loaded, runs)[0] == {}
    assert run_files.pictures(loaded, runs)[1][0].count("policy.gif") == 2


def test_an_archive_has_no_pictures_and_nothing_breaks(archive):
    loaded = results.load(archive)
    assert run_files.folders(loaded, archive) == {}
    built = report.build(archive)
    assert "data-film" not in built.html.read_text()
    assert not (archive / "figures" / "returns.png").exists()


def test_a_damaged_picture_is_named(filmed):
    path = filmed.root / filmed.cells[0]["run"] / "policy.gif"
    path.write_bytes(b"no picture")
    with pytest.raises(results.ResultsError, match="is no picture that can be read"):
        report.build(filmed.folder)


def test_the_median_seed_of_every_method_on_every_dataset(sweep):
    for seed, last in enumerate([30.0, 10.0, 20.0, 40.0]):
        sweep.cell("iql", DATASET, seed, last=last)
    sweep.cell("bc", DATASET, 0, status="failed", error="FloatingPointError: loss", final=False)
    sweep.cell("bc", DATASET, 1, last=5.0)
    loaded = results.load(sweep.write())
    assert run_files.medians(loaded) == [2, 5]


def test_returns_of_data_and_policies(filmed):
    loaded = results.load(filmed.folder)
    known = run_files.data_returns(loaded, run_files.provenance(run_files.folders(loaded, filmed.folder)))
    assert known == {dataset: [-900.0, -500.0, -400.0] for dataset in loaded.datasets}
    figure = plots.return_histograms(loaded, known)
    first = figure.axes[0]
    heights = [bar.get_height() for bar in first.patches]
    assert np.sum(heights) == pytest.approx(1.0)
    assert len(first.get_lines()) == len(loaded.methods)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["data", *loaded.methods]
    assert plots.return_histograms(loaded, {}) is None


def test_the_data_are_described_by_the_run_that_had_most_of_them(filmed):
    path = filmed.root / filmed.cells[0]["run"] / "provenance.json"
    made = json.loads(path.read_text())
    made["dataset"] |= {"transitions": 10, "returns": [1.0]}
    path.write_text(json.dumps(made))
    loaded = results.load(filmed.folder)
    known = run_files.data_returns(loaded, run_files.provenance(run_files.folders(loaded, filmed.folder)))
    assert known[DATASET] == [-900.0, -500.0, -400.0]
