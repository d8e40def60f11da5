"""Names that a terminal would obey, or no page can hold, in records: every rendering shows them and stays whole."""

import hashlib
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch

from balancebench_udi.metrics.predictions import pack
from balancebench_udi.report import elements, matrix_rendering, page, rendering, tex
from balancebench_udi.report.comparison import compare
from balancebench_udi.report.figures import embedding, style
from balancebench_udi.report.groups import collect
from balancebench_udi.report.matrix import Cell, build
from balancebench_udi.report.page import Roles
from balancebench_udi.spec import canonical
from balancebench_udi.text import escape_controls, unguard_frame
from benchmarks.records import save
from tests.helpers import written_spec

NAMES = ("\x00", "\x1b[31mred", "a<b>&\"'", "\ufffe", "\u202eabc", "$\\frac{$", "x-->", "]]>", "=1+1", "a\nb", "|`*\\")
TARGET = torch.arange(40) % 4


def record(method, seed, right, classes):
    """A run that is right on the first samples."""
    spec = written_spec(method=method, seed=seed)
    fused = torch.where(torch.arange(len(TARGET)) < right, TARGET, (TARGET + 1) % 4)
    share = right / len(TARGET)
    test = {"accuracy": share, "macro_f1": share, "loss": 1.0, "imbalance": 0.2, "imbalance_relative": 0.5}
    test |= {f"{kind}/{m}": share for kind in ("share", "shapley") for m in ("audio", "visual")}
    ones = {"audio": 100, "visual": 100}
    predictions = {name: pack(fused) for name in ("fused", "share/audio", "share/visual")}
    reading = {"epochs": [1], "val": {"accuracy": share}, "test": test, "predictions": predictions}
    curve = {"phase": "train", "epoch": 0, "lr": 0.1, "train": {"loss": 1.0, "accuracy": 0.5}, "val": {"accuracy": 0.5}}
    return {
        "key": digest(spec),
        "cell": digest({k: v for k, v in spec.items() if k != "seed"}),
        "spec": spec,
        "result": {
            "readings": {"best_val": reading},
            "curves": [curve],
            "test_target": pack(TARGET),
            "modalities": ["audio", "visual"],
            "passes": {"forward": ones, "backward": ones},
            "parameters": 10,
        },
        "cost": {
            "phases": [
                {
                    "phase": "train",
                    "cpu_seconds": 2.0,
                    "seconds": 3.0,
                    "reused_from": None,
                    "forward": ones,
                    "backward": ones,
                }
            ],
            "flops_per_sample": {"audio": 2e6, "visual": 1e6},
            "flops": 9e8,
            "wall_seconds": 4.0,
            "peak_memory_bytes": 5e8,
        },
        "data": {"classes": classes, "facts": {}},
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0", "commit": "abc"},
    }


def digest(values):
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:12]


def records(name):
    return [
        record(method, seed, right + seed, [name, "x", "y", f"{name}z"])
        for method, right in ((name, 20), ("joint", 30))
        for seed in range(2)
    ]


def harmless(text):
    """Nothing in it but lines of what can be shown."""
    return escape_controls(text, keep="\n\t") == text and bool(text.encode())


class Words(HTMLParser):
    """What the elements of a page hold."""

    def __init__(self, text):
        super().__init__()
        self.words = []
        self.feed(text)
        self.close()

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_comparison(name):
    made = compare(records(name), reference="joint")
    for text in (made.text(), rendering.markdown(made), rendering.latex(made)):
        assert harmless(text)
    lines = rendering.markdown(made).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 6  # two methods, majority class and chance
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) == 1  # no name ends a cell
    assert not any(re.search(r"<(?!br)|(?<!\\)`", line) for line in lines)
    again = unguard_frame(pd.read_csv(io.StringIO(rendering.csv(made)), keep_default_na=False))
    assert name in again["method"].tolist()
    assert not [cell for cell in pd.read_csv(io.StringIO(rendering.csv(made)))["method"] if cell.startswith("=")]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_table(name):
    mine = records(name)
    cells = {
        (name, "D"): Cell(tuple(mine[:2]), 2),
        ("joint", "D"): Cell(tuple(mine[2:]), 2),
        (name, name): Cell(),
        ("joint", name): Cell(),
    }
    made = build(f"A {name}", {name: f"about {name}", "joint": ""}, {"D": "", name: ""}, cells, caption=[name])
    for render in (matrix_rendering.text, matrix_rendering.markdown, matrix_rendering.latex):
        assert harmless(render(made))
    rows = [line for line in matrix_rendering.markdown(made).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) == 1
    fragment = matrix_rendering.html(made)
    assert harmless(fragment)
    root = ElementTree.fromstring(fragment.replace(f"<style>{matrix_rendering.STYLE}</style>", ""))
    heads = ["".join(cell.itertext()) for cell in root.iter("th")]
    assert escape_controls(name) in heads
    again = unguard_frame(pd.read_csv(io.StringIO(matrix_rendering.csv(made)), keep_default_na=False))
    assert name in again["row"].tolist()


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")  # of a figure that is laid out before it is written
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_page_with_its_figures(name):
    groups, _ = collect(records(name), "best_val", {})
    found = {r["key"]: r for r in records(name)}
    html = page.page(groups, "best_val", {}, Roles("joint", (), ()), lambda spec: found[digest(spec)])
    assert harmless(html)
    parsed = Words(html)
    assert "<" not in name or name not in html
    assert any(escape_controls(name) in words for words in parsed.words)
    figures = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(figures) > 3
    for one in figures:
        ElementTree.fromstring(one)


@pytest.mark.parametrize("name", [*NAMES, "\ud800"], ids=ascii)
def test_a_figure_of_features_in_both_kinds_of_svg(name):
    places = pd.DataFrame({"panel": "p", "x": [0.0, 1, 2, 3], "y": [0.0, 1, 2, 3], "target": [0, 1, 0, 1]})
    drawing = embedding.draw(places, [name, "other"], "title")
    for text in (drawing.svg(), style._rendered(drawing.figure, "svg").decode()):
        assert harmless(text)
        ElementTree.fromstring(text)
    inline = elements.figure(drawing, name, "f1")
    assert harmless(inline)
    ElementTree.fromstring(inline)


@pytest.mark.parametrize("first", ["[2em]", "*", "[x"])
def test_the_first_cell_of_a_row_is_no_option_of_the_line_above(first):
    columns = [tex.Column("", "name", (tex.escaped("a"), tex.escaped(first))), tex.Column("", "n", ("1", "2"))]
    lines = tex.table("t", columns[:1], columns[1:], {}).splitlines()
    assert rf"{{}}{first} & 2 \\" in lines


def test_the_table_of_records_is_guarded_and_parquet_is_not():
    table = pd.DataFrame({"sample": ["=1", "-b", "a"], "score": [-1.0, 2.0, 3.0]})
    csv, parquet = io.BytesIO(), io.BytesIO()
    assert save([table, table], csv, ".csv") == save([table, table], parquet, ".parquet") == 6
    lines = csv.getvalue().decode().splitlines()
    assert lines[:3] == ["sample,score", "'=1,-1.0", "'-b,2.0"]
    assert lines[4] == "'=1,-1.0"
    assert pd.read_parquet(io.BytesIO(parquet.getvalue()))["sample"].tolist() == ["=1", "-b", "a"] * 2
