"""LaTeX of wide tables: nothing leaves the page, and nothing is lost."""

import re
import shutil
import subprocess

import pytest

from balancebench_udi.report import tex
from tests.conftest import ROOT

NAMES = tex.Column("", "", tuple(f"method {row}" for row in range(12)))
WIDE = [
    tex.Column(
        f"data {group}", f"probe_gap of m{number}", tuple(f"{group}{number}.{row} $\\pm$ 1.2" for row in range(12))
    )
    for group in range(6)
    for number in range(5)
]
SAID = {"What it says": ["[1] is 50 % & more."], "How to read it": []}


def panels(made: str) -> list[str]:
    return re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", made, re.DOTALL)


def test_every_cell_is_in_one_panel_and_every_panel_names_its_rows():
    made = tex.table("Wide", [NAMES], WIDE, SAID)
    assert len(panels(made)) > 4
    for column in WIDE:
        for one in column.cells:
            assert made.count(f" {one} ") == 1
    assert all(panel.count(f"method {row} &") == 1 for panel in panels(made) for row in range(12))


def test_panels_fit_a_line_and_floats_a_page():
    made = tex.table("Wide", [NAMES], WIDE, SAID)
    for panel in panels(made):
        shown = [re.sub(r"\$.*?\$", "x", line) for line in panel.splitlines() if line.startswith("method")]
        assert max(map(len, shown)) <= tex.LINE
    floats = made.split(r"\begin{table}")[1:]
    assert len(floats) > 1
    assert all(len(one[: one.index(r"\end{table}")].splitlines()) <= tex.HEIGHT + 8 for one in floats)
    assert made.count(r"\label{") == 1
    assert made.count(r"\addtocounter{table}{-1}") == len(floats) - 1


def test_groups_stay_together_where_they_fit():
    three = [column for column in WIDE if column.head[-1] in "012"]  # five columns fit, two groups do not
    found = panels(tex.table("Wide", [NAMES], three, SAID))
    assert [panel.count(r"\multicolumn{3}") for panel in found] == [1] * 6


def test_what_is_said_stands_below_and_is_escaped():
    made = tex.table("A_title", [NAMES], WIDE[:1], SAID)
    assert made.index(r"\end{table}") < made.index(r"\item {}[1] is 50 \% \& more.")
    assert r"\caption{A\_title.}" in made
    assert "How to read it" not in made


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_committed_tables_set_without_an_error_and_within_the_page(tmp_path):
    files = sorted((ROOT / "results" / "tables").glob("*/*.tex"))
    assert files
    inputs = "\n".join(rf"\input{{{file}}}\clearpage" for file in files)
    source = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "all.tex").write_text(source)
    called = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "all.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert called.returncode == 0, called.stdout[-2000:]
    assert "Float too large" not in called.stdout
    assert [
        width for width in re.findall(r"Overfull \\hbox \((.*?)pt too wide", called.stdout) if float(width) > 12
    ] == []
