"""The page about many runs: what it counts, what it recommends, and that every reader can use it."""

from __future__ import annotations

import copy
import hashlib
import pickle
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from balancebench_udi.errors import UserError
from balancebench_udi.metrics.predictions import pack
from balancebench_udi.metrics.statistics import DIFFERENT, Verdict, verdict
from balancebench_udi.report import advice, elements, page
from balancebench_udi.report.contest import Samples
from balancebench_udi.report.figures.style import Drawing, canvas, styled
from balancebench_udi.report.groups import POINTS, collect, described
from balancebench_udi.report.page import MethodFacts, Roles
from balancebench_udi.spec import canonical
from tests.helpers import written_spec

N = 2000
TARGET = torch.arange(N) % 4
ROLES = Roles("base", alone=("apart", "sum"), single=("apart",))
SPEC = written_spec(dataset_options={"noise": 0.5})


def predicted(accuracy, salt=0):
    """Predictions that are right on the first ``accuracy`` of the samples, in an order that ``salt`` turns a little."""
    order = np.roll(np.arange(N), salt)
    right = torch.zeros(N, dtype=torch.bool)
    right[order[: round(accuracy * N)]] = True
    return torch.where(right, TARGET, (TARGET + 1) % 4)


def run(method, seed=0, fused=0.5, readouts=None, *, cost=1.0, curve=None, select="best_val", **spec):
    """A whole record; ``readouts`` are accuracies by name, such as ``alone/audio``."""
    spec = {**copy.deepcopy(SPEC), "method": method, "seed": seed, **spec}
    given = {"fused": fused, **(readouts or {})}
    test = {"accuracy": fused, "macro_f1": fused, "loss": 1.0, "imbalance": 0.25, "imbalance_relative": 0.5}
    test |= {"shapley/audio": 0.2, "shapley/visual": 0.1} | (readouts or {})
    phases = curve or {"train": [0.25, fused]}
    entries = [
        {"phase": p, "epoch": e, "lr": 0.1, "train": {"loss": 1.0, "accuracy": 0.5}, "val": {"accuracy": v}}
        for p, values in phases.items()
        for e, v in enumerate(values)
    ]
    passes = {"forward": {"audio": 100, "visual": 100}, "backward": {"audio": 100, "visual": 100}}
    passes = {way: {m: n * cost for m, n in of.items()} for way, of in passes.items()}
    return {
        "key": digest(spec),
        "cell": digest({k: v for k, v in spec.items() if k != "seed"}),
        "spec": spec,
        "result": {
            "readings": {
                select: {
                    "epochs": [1],
                    "val": {"accuracy": fused},
                    "test": test,
                    "predictions": {name: pack(predicted(value, seed)) for name, value in given.items()},
                }
            },
            "curves": entries,
            "test_target": pack(TARGET),
            "modalities": ["audio", "visual"],
            "passes": passes,
            "parameters": 1234,
        },
        "cost": {
            "phases": [{"phase": "train", "cpu_seconds": 2.0 * cost, "seconds": 3.0, "reused_from": None}],
            **{"flops_per_sample": {"audio": 2e6, "visual": 1e6}, "flops": 9e8 * cost, "wall_seconds": 4.0},
            **({"peak_memory_of": "run"} if cost > 1 else {}),  # of the others it is that of a process
            "peak_memory_bytes": 5e8,
        },
        "data": {"classes": list("wxyz"), "facts": {"generated": True, "videos": ["long"] * 99}},
        "machine": {"device_type": "cpu", "device": "Some CPU", "threads": 1, "torch": "2.0", "commit": "abc"},
    }


def digest(values):
    return hashlib.sha256(canonical(values).encode()).hexdigest()[:12]


def starved(dataset="toy", seeds=3, **spec):
    """Audio is worse inside ``base`` than alone; ``cure`` recovers it at twice the passes, ``dear`` at three times."""
    records = []
    for seed in range(seeds):
        more = {"dataset": dataset, **spec}
        records += [
            run("base", seed, 0.6, {"share/audio": 0.4, "share/visual": 0.5}, **more),
            run("apart", seed, 0.7, {"alone/audio": 0.7, "alone/visual": 0.5}, **more),
            run("cure", seed, 0.8, {"share/audio": 0.68, "share/visual": 0.5}, cost=2.0, **more),
            run("dear", seed, 0.8, {"share/audio": 0.7, "share/visual": 0.5}, cost=3.0, **more),
            run("none", seed, 0.6, cost=1.0, **more),
        ]
    return records


METHODS = {
    "base": MethodFacts("base", "Takes ``all`` of it. Plain.", "A & B, https://arxiv.org/abs/1234.5678", "none"),
    "cure": MethodFacts("cure", "Heals <audio>.", "C", "objective", {"alpha": 1.0}),
}


def plain(part, records):
    with styled():
        figure, _ = canvas(2, 1)
    return Drawing(figure, 'Numbers "1" & 2.', "What is <plotted>.")


def refused(part, records):
    raise UserError("it needs something else")


FIGURES = (("Plain", plain), ("Again", plain), ("Nothing", lambda p, r: None), ("Refused", refused))


def made(records, select="best_val", figures=FIGURES, usual=None, **given):
    groups, lacking = collect(iter(records), select, {"base": {}, "apart": {}, **(usual or {})})
    known = {r["key"]: r for r in records}

    def read(spec):
        return next((r for r in known.values() if r["spec"] == spec), None)

    return page.page(groups, select, METHODS, ROLES, read, lacking=lacking, figures=figures, **given)


class Reader(HTMLParser):
    """What a page holds, and what is wrong with it."""

    VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "rect", "image"}

    def __init__(self, text):
        super().__init__()
        self.headings, self.ids, self.links, self.wrong, self.open, self.rows = [], [], [], [], [], []
        self.tables, self.buttons, self.text = [], 0, []
        self.feed(text)
        self.close()
        self.wrong += [f"open: {tag}" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if "id" in given:
            self.ids.append(given["id"])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("img", "svg") and not (given.get("alt") or given.get("aria-label")):
            self.wrong.append(f"{tag} without a name")
        if tag == "svg" and given.get("role") != "img":
            self.wrong.append("svg without a role")
        if tag == "a":
            self.links.append(given["href"])
        for name in ("src", "srcset", "data", "poster", "action") + (("href",) if tag != "a" else ()):
            if name in given and not given[name].startswith(("#", "data:")):
                self.wrong.append(f"{tag} loads {given[name]}")
        if "style" in given and re.search(r"url\((?!#)", given["style"]):
            self.wrong.append(f"{tag} loads in its style")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append((tag, given.get("scope")))
        if tag == "button":
            self.buttons += 1
            if "th" not in self.open:
                self.wrong.append("a button outside of a head")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def words(text):
    return " ".join(" ".join(Reader(text).text).split())


@pytest.fixture(scope="module")
def text():
    return made(starved() + starved("other", 2, precision="bf16"))


def test_every_reader_can_use_it(text):
    read = Reader(text)
    assert read.wrong == []
    assert read.headings.count(1) == 1
    assert read.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(read.headings, read.headings[1:], strict=False))
    assert len(read.ids) == len(set(read.ids))
    targets = {link[1:] for link in read.links if link.startswith("#")}
    assert targets <= set(read.ids)
    assert {link for link in read.links if not link.startswith("#")} == {"https://arxiv.org/abs/1234.5678"}
    assert text.startswith('<!doctype html>\n<html lang="en-GB">')
    assert "default-src 'none'" in text
    assert len(read.tables) > 6
    for table in read.tables:
        assert all(one == ("th", "col") for one in table[0])
        for row in table[1:]:
            assert row[0] == ("th", "row")
            assert {tag for tag, _ in row[1:]} == {"td"}
            assert len(row) == len(table[0])
    assert read.buttons >= 20


def test_references_inside_a_figure_lead_to_that_figure(text):
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    assert len(figures) == 5  # two of four can be drawn, in two groups; and the ranks
    for one in figures:
        ids = set(re.findall(r' id="([^"]+)"', one))
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', one))
        assert used
        assert used <= ids
        assert not re.search("xlink|xmlns|<style|http", one)


def test_the_words_of_a_figure_are_text(text):
    """They can be searched and copied, and a thousand of them are not sixteen thousand outlines of glyphs."""
    for one in re.findall(r"<figure>.*?</figure>", text, re.S):
        words = re.findall(r"<text ([^>]*)>", one)
        assert len(words) >= 5
        assert all("'DejaVu Sans', Verdana, sans-serif" in attributes for attributes in words)
        assert "DejaVuSans-" not in one  # what an outline is called


def test_room_is_kept_for_figures_that_are_not_drawn_yet(text):
    """As much as the drawing takes, so that links into the page lead where they should."""
    cards = re.findall(
        r'contain-intrinsic-size: auto ([\d.]+)in auto ([\d.]+)in"><svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"',
        text,
    )
    assert len(cards) == text.count('class="scroll card"') > 0
    for sizes in cards:
        width, height, *points = map(float, sizes)
        assert [72 * width, 72 * height] == pytest.approx(points, abs=0.01)


def test_words_beside_a_figure_are_escaped(text):
    assert 'aria-label="Numbers &quot;1&quot; &amp; 2."' in text
    assert "<figcaption>What is &lt;plotted&gt;.</figcaption>" in text
    assert "Heals &lt;audio&gt;." in text
    assert "<code>all</code>" in text


def test_names_from_records_are_escaped():
    evil = '<b onclick="x">&'
    text = made(
        [run(m, s, dataset=evil, dataset_options={"k": evil}) for m in ("base", evil) for s in (0, 1)], figured=0
    )
    assert Reader(text).wrong == []
    assert "<b onclick" not in text


def test_equal_records_give_equal_bytes_in_any_order(text):
    records = starved() + starved("other", 2, precision="bf16")
    random.Random(0).shuffle(records)
    assert made(records) == text


def test_the_answer_is_the_cheapest_cure(text):
    told = words(text)
    assert "Use cure: 20.0 points" in told
    assert "at 2.00 times its encoder passes" in told
    assert "Not significantly different from it in accuracy: dear." in told
    assert "The best single modality, trained alone (apart), is 10.0 points" in told
    assert "less accurate than cure." in told
    assert (
        "In base, audio starves: trained alone its own head reaches 70.0 %, inside base its share of the fused logits "
        "gives" in told
    )
    assert "40.0 %, 30.0 points" in told
    assert "Recovered significantly, audio: by dear (+30.0 points, 3.00 times the passes) and cure (+28.0" in told
    assert "visual starves" not in told


def test_figures_that_cannot_be_drawn_are_caveats(text):
    told = words(text)
    assert told.count("No figure “Nothing”: the runs hold nothing for it.") == 2
    assert told.count("No figure “Refused”: it needs something else.") == 2


def test_caveats_come_from_the_records(text):
    told = words(text)
    assert "Every method has 3 seeds" in told
    assert "Every method has 2 seeds" in told
    assert told.count("Encoders computed in bf16") == 1
    assert told.count("The data is generated") == 2
    assert "probe is missing in 15 of 15 runs" in told
    assert "read by share" in told
    assert "no part in it" in told  # the reading
    assert "left out" not in told
    some = words(made([run("base", s, readouts={"ece": 0.1} if s else {}) for s in range(3)], figured=0))
    assert "ece is missing in 1 of 3 runs" in some


def test_cells_hold_mean_spread_and_count(text):
    section = re.search(r'<h2 id="g1">.*?</section>', text, re.S)[0]
    row = re.search(r'<tr><th scope="row">base</th>.*?</tr>', section)[0]
    assert 'data-v="3">3 of 3<' in row
    assert 'data-v="0.6">60.0<span class="sd"> ± 0.0</span>' in row
    assert '<td class="num" data-v="1">1.00</td>' in row
    cure = re.search(r'<tr><th scope="row">cure</th>.*?</tr>', section)[0]
    assert '<b>80.0<span class="sd"> ± 0.0</span></b>' in cure
    assert '<td class="num" data-v="2">2.00</td>' in cure
    dear = re.search(r'<tr><th scope="row">dear</th>.*?</tr>', section)[0]
    assert "†" in dear
    assert "not significantly different" in dear
    assert "≈" not in cure + row
    none = re.search(r'<tr><th scope="row">none</th>.*?</tr>', section)[0]
    assert '<td class="num"><span class="none">–</span></td>' in none  # no share


def test_what_a_run_takes_stands_in_a_table_of_its_own(text):
    table = re.search(r"<h3>Costs</h3>.*?</table>", text, re.S)[0]
    assert [re.sub("<.*?>", "", head) for head in re.findall("<th scope=.col.*?</th>", table)] == [
        "method",
        "parameters (k)",
        "MFLOP / sample",
        "forward (k)",
        "backward (k)",
        "GFLOP",
        "memory (MB)",
    ]
    rows = [re.sub("<.*?>", " ", row).split() for row in re.findall('<tr><th scope="row">.*?</tr>', table)]
    assert ["base", "1.23", "3.00", "0.20", "0.20", "0.90", "–"] in rows
    assert ["cure", "1.23", "3.00", "0.40", "0.40", "1.80", "500.00"] in rows


def test_the_probe_gap_of_every_method_stands_in_the_results():
    heads = {"alone/audio": 0.7, "alone/visual": 0.5}
    records = []
    for seed in range(3):
        probes = {"probe/audio": 0.8 + 0.01 * seed, "probe/visual": 0.5}
        records.append(run("apart", seed, 0.7, heads | probes))
        records.append(run("base", seed, 0.6, {"probe/audio": 0.4 + 0.01 * seed, "probe/visual": 0.55}))
        records.append(run("none", seed, 0.6))
    records.append(run("late", 7, 0.6, {"probe/audio": 0.4, "probe/visual": 0.55}))  # no run alone has its seed
    text = made(records)
    table = text[text.index("<caption>Test results of") :]
    table = table[: table.index("</table>")]
    heads = [re.sub("<[^>]+>", "", head) for head in re.findall(r'<th scope="col".*?</th>', table)]
    at = heads.index("probe gap audio")
    assert heads[at : at + 2] == ["probe gap audio", "probe gap visual"]
    shown = {
        name: [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td.*?</td>", row)][at - 1 : at + 1]
        for name, row in re.findall(r'<th scope="row">(\w+)</th>(.*)', table)
    }
    gaps = {"base": ["40.0 ± 0.0", "−5.0 ± 0.0"], "apart": ["0.0 ± 0.0", "0.0 ± 0.0"]}
    assert shown == {**gaps, "none": ["–", "–"], "late": ["–", "–"], "chance": ["–", "–"]}
    assert "Probe gap: what a probe reads in the encoder trained alone (apart, same seed) minus" in table
    assert "robe gap" not in made(starved())


def test_the_card_of_a_method_says_where_it_wins(text):
    card = re.search(r'<article class="method"><h3>cure</h3>.*?</article>', text, re.S)[0]
    told = words(card)
    assert "Most accurate other, protocol quick v1 (precision bf16)" not in told  # a dataset of its own needs no more
    assert (
        "Most accurate toy, protocol quick v1; other, protocol quick v1 Not significantly different nowhere here"
        in told
    )
    assert card.count('class="spark"') == 2
    assert "by phase: 25.0 to 80.0 %" in card
    base = re.search(r'<article class="method"><h3>base</h3>.*?</article>', text, re.S)[0]
    assert "Most accurate nowhere here Not significantly different nowhere here" in words(base)
    dear = re.search(r'<article class="method"><h3>dear</h3>.*?</article>', text, re.S)[0]
    assert "Most accurate nowhere here Not significantly different toy" in words(dear)


def test_options_that_are_not_at_their_default_are_told():
    records = [run("base", s) for s in range(2)] + [run("cure", s, method_options={"alpha": 0.5}) for s in range(2)]
    card = re.search(r'<article class="method"><h3>cure</h3>.*?</article>', made(records), re.S)[0]
    assert "alpha 0.5" in card
    records[2:] = [run("cure", s, method_options={"alpha": 1.0}) for s in range(2)]
    card = re.search(r'<article class="method"><h3>cure</h3>.*?</article>', made(records), re.S)[0]
    assert "alpha" not in card
    assert "<td>none</td>" in card


def test_published_numbers_stand_in_a_table_of_their_own():
    claims = [{"label": "X", "accuracy": 61.9, "source": "S, https://doi.org/1", "protocol": "other"}]
    asked = []
    text = made(starved(), published=lambda spec: asked.append(spec) or claims)
    assert [spec["dataset"] for spec in asked] == ["toy"]
    assert '<td class="num" data-v="61.9">61.9</td>' in text
    assert '<a href="https://doi.org/1">' in text
    assert "in no mean" in text
    assert Reader(text).wrong == []


def test_a_page_without_reference_or_single_modalities_says_so():
    text = made([run(m, s) for m in ("cure", "dear") for s in (0, 1)], figured=0)
    told = words(text)
    assert "There is no answer yet: base and another method must have a seed in common" in told
    assert "No run of base, so neither gains nor relative costs: toy, protocol quick v1." in told
    assert "nothing is said about starving: toy, protocol quick v1." in told
    assert Reader(text).wrong == []


def test_rows_with_fewer_seeds_are_named_and_not_marked():
    text = made([*starved(), run("late", 0, 0.9)], figured=0)
    assert "Not compared, with fewer or other seeds: late." in words(text)
    section = re.search(r'<h2 id="g1">.*?</section>', text, re.S)[0]
    assert re.search(r'<tr><th scope="row">cure</th>.*?</tr>', section)[0].count("<b>80.0") == 1
    assert "≈" not in re.search(r'<tr><th scope="row">late</th>.*?</tr>', section)[0]


def test_one_seed_of_one_method():
    text = made([run("base")])
    assert Reader(text).wrong == []
    assert "one seed" in words(text)


def test_a_reading_that_some_lack():
    records = [run("base", s) for s in range(2)] + [run("cure", 0, select="best_test")]
    assert "1 run was left out" in words(made(records))
    with pytest.raises(UserError, match="at least one run"):
        made(records[:2], "best_test")


def test_only_the_first_groups_get_figures():
    records = starved("few", 2) + starved("many", 3) + [run("base", 0, dataset="one")]
    text = made(records, figured=1)
    assert text.count("<figure>") == 3  # two of that group, and the ranks
    assert 'id="g1f1-figure_1"' in text
    assert "1 of 3 groups have figures" in words(text)
    assert '<h2 id="g1">many' in text


def test_whole_records_are_read_for_figures_only_and_carry_the_label_of_their_row():
    records = starved("many", 3) + starved("few", 2)
    records += [run("cure", s, 0.8, method_options={"alpha": 2.0}, dataset="many") for s in range(2)]
    seen = []
    text = made(records, figured=1, figures=(("See", lambda p, r: seen.extend(r)),))
    assert {r["spec"]["dataset"] for r in seen} == {"many"}
    assert {r["spec"]["method"] for r in seen} == {"base", "apart", "cure (alpha absent)", "dear", "none"}
    assert "figures show one row a method" in words(text)
    assert "over 2 datasets" in words(text)  # ranks are those of methods
    assert all("curves" in r["result"] for r in seen)


def test_ranks_over_datasets_use_one_group_each():
    text = made(starved("a") + starved("a", 2, fusion="sum") + starved("b", 2))
    assert 'id="ranks"' in text
    figure = re.search(r'aria-label="Average ranks[^"]*"', text)[0]
    assert "cure 1.50, dear 1.50" in figure
    assert "over 2 datasets" in words(text)
    assert "a, protocol quick v1 (fusion concat), b, protocol quick v1" in words(text)
    assert 'id="ranks"' not in made(starved("a"))
    assert 'id="ranks"' not in made(starved("a") + [run("base", s, dataset="b") for s in range(2)])


def test_many_cells_make_a_small_page():
    records = (run(m, 0, 0.5, dataset=f"d{g:03}") for g in range(40) for m in ("base", "apart", "cure", "dear", "none"))
    groups, _ = collect(records, "best_val")
    text = page.page(groups, "best_val", METHODS, ROLES, lambda spec: None, figured=2)
    assert len(groups) == 40
    assert len(text) < 40_000 + 200 * 3_000  # style, script and cards; then the rows
    assert text.count("<section") == 44  # the answer, the groups, ranks, methods and caveats


def test_little_of_a_record_stays_in_memory():
    curve = {"train": [0.5] * 900}
    records = [run("base", s, readouts={"share/audio": 0.5}, curve=curve) for s in range(20)]
    groups, _ = collect(iter(records), "best_val")
    assert len(pickle.dumps(groups)) < len(pickle.dumps(records)) / 8
    assert "videos" not in groups[0].runs[0].record["data"]["facts"]


def test_groups_are_what_one_table_may_hold():
    records = [run("base", s, fusion=f) for f in ("concat", "sum") for s in range(3)][:5]
    groups, lacking = collect(iter(records), "best_val")
    assert [len(g.runs) for g in groups] == [3, 2]
    assert [g.title for g in groups] == [f"toy, protocol quick v1 (fusion {f})" for f in ("concat", "sum")]
    assert lacking == 0


def test_variants_of_a_method_are_rows_of_their_own():
    records = [run("base", 0), run("cure", 0, method_options={"alpha": 0.5, "beta": 1}, method_version=1)]
    records += [run("cure", s, method_options={"alpha": 1.5, "beta": 1}, method_version=1) for s in (1, 0)]
    (group,), _ = collect(iter(records), "best_val", {"cure": {}, "base": {}})
    assert list(group.rows) == ["cure (alpha 0.5)", "cure (alpha 1.5)", "base"]
    assert [run.seed for run in group.rows["cure (alpha 1.5)"]] == [0, 1]
    assert group.methods == {"cure (alpha 0.5)": "cure", "cure (alpha 1.5)": "cure", "base": "base"}
    assert [spec["method"] for spec in group.specs()] == ["cure", "cure", "cure", "base"]
    assert records[1]["spec"]["method"] == "cure"  # the given record stays as it was
    assert [r["spec"]["method"] for r in group.labelled(records)] == [
        "cure (alpha 0.5)",
        *["cure (alpha 1.5)"] * 2,
        "base",
    ]
    (group,), _ = collect(iter(records), "best_val", {"base": {}, "cure": {"alpha": 1.5, "beta": 0}})
    assert list(group.rows) == ["base", "cure", "cure (alpha 0.5)"]
    set_by = {("quick", 1): {"cure": {"alpha": 0.5}}}
    usual = {"base": {}, "cure": {"alpha": 1.5, "beta": 0}}
    (group,), _ = collect(records, "best_val", usual, lambda s: set_by[s["protocol"], s["protocol_version"]])
    assert list(group.rows) == ["base", "cure", "cure (alpha 1.5)"]
    versions = [run("cure", 0, method_version=v) for v in (1, 2)]
    assert list(collect(versions, "best_val")[0][0].rows) == ["cure (method_version 1)", "cure (method_version 2)"]


def test_hits_are_those_of_the_predictions():
    record = run("base", 2, 0.37, {"share/audio": 0.11})
    (group,), _ = collect([record], "best_val")
    np.testing.assert_array_equal(group.hits("base", "fused")[2], (predicted(0.37, 2) == TARGET).numpy())
    assert group.hits("base", "share/audio")[2].mean() == pytest.approx(0.11)
    assert group.hits("base", "probe/audio") == {}
    assert group.hits("nobody", "fused") == {}


def test_curves_are_thinned_and_end_where_the_run_ended():
    values = [i / 1000 for i in range(700)]
    (group,), _ = collect([run("base", curve={"a": values[:300], "b": values[300:]})], "best_val")
    curve = group.runs[0].curve
    assert sum(map(len, curve)) <= POINTS
    assert [phase[-1] for phase in curve] == [0.299, 0.699]
    (group,), _ = collect([run("base", curve={"a": values[:5]})], "best_val")
    assert group.runs[0].curve == [values[:5]]


def test_differences_are_leaves_that_are_not_alike():
    rows = [{"a": {"x": 1, "y": [1, 2]}, "b": "s"}, {"a": {"x": 1, "y": [1]}, "b": "s"}]
    assert described(rows) == ["y [1,2]", "y [1]"]
    assert described([{"a": None}, {"a": 1.0}]) == ["a null", "a 1.0"]
    assert described([{"a": {}}, {"a": {"k": 1}}]) == ["k absent", "k 1"]
    assert described([{"a": {"n": 1}}, {"a": {"n": 2, "k": 1}}]) == ["n 1", "k 1, n 2"]
    assert described(rows[:1]) == [""]
    assert described([{}, {}]) == ["", ""]


def hits(accuracy, seeds=3, samples=400, salt=0):
    """Seed -> hits of random samples, nested: a higher accuracy is right wherever a lower one is."""
    found = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed + 100 * salt).random(samples).argsort().argsort()
        found[seed] = order < round(accuracy * samples)
    return found


SPLIT = Samples(0.0, 0.0)


def test_gaps_are_the_verdicts_of_all_tables():
    alone, inside = {"a": hits(0.9), "b": hits(0.50)}, {"a": hits(0.6), "b": hits(0.502)}
    found = advice.gaps(alone, inside, SPLIT)
    assert [gap.modality for gap in found] == ["a", "b"]
    assert [gap.starved for gap in found] == [True, False]
    assert (found[0].alone, found[0].inside) == (pytest.approx(0.9), pytest.approx(0.6))
    expected = {m: verdict(*(np.array(list(x[m].values())) for x in (alone, inside))) for m in "ab"}
    assert {gap.modality: gap.found for gap in found} == expected
    only = advice.gaps({"a": alone["a"]}, inside, SPLIT)
    assert only == found[:1]  # whatever stands beside it
    assert advice.gaps(alone, {"a": {7: inside["a"][0]}}, SPLIT) == []  # no seed in common


def test_a_gap_must_be_large_and_beyond_chance():
    small = advice.gaps({"a": hits(0.905, samples=20_000)}, {"a": hits(0.9, samples=20_000)}, SPLIT)[0]
    assert small.found.kind == DIFFERENT
    assert not small.starved  # half a point
    assert advice.gaps({"a": hits(0.905, samples=20_000)}, {"a": hits(0.9, samples=20_000)}, SPLIT, margin=0.004)[
        0
    ].starved
    noisy = advice.gaps({"a": hits(0.55, 2, 40)}, {"a": hits(0.5, 2, 40, salt=1)}, SPLIT)[0]
    assert noisy.found.difference > advice.MARGIN
    assert not noisy.starved


def test_remedies_compare_with_the_reference():
    fused = {"base": hits(0.6), "cure": hits(0.7), "harm": hits(0.5), "lone": {9: hits(0.9)[0]}}
    inside = {"base": {"a": hits(0.3)}, "cure": {"a": hits(0.5)}, "harm": {}}
    found = advice.remedies(fused, inside, "base", ["a"], {"cure": 2.0}, SPLIT)
    assert [r.method for r in found] == ["cure", "harm"]
    cure, harm = found
    assert cure.gain.difference == pytest.approx(0.1)
    assert cure.change == {"a": pytest.approx(0.2)}
    assert cure.recovered == ("a",)
    assert cure.passes == 2.0
    assert harm.gain.difference == pytest.approx(-0.1)
    assert (harm.change, harm.recovered) == ({}, ())
    assert np.isnan(harm.passes)
    tiny = advice.remedies(fused, {"base": {"a": hits(0.3)}, "cure": {"a": hits(0.3)}}, "base", ["a"], {}, SPLIT)
    assert tiny[0].recovered == ()


def chosen(accuracies, passes, single=(), reference="base"):
    fused = {name: value if isinstance(value, dict) else hits(value) for name, value in accuracies.items()}
    found = advice.remedies(fused, {}, reference, [], passes, SPLIT) if reference else []
    return advice.choose(fused, reference, found, SPLIT, single), found


def test_the_cheapest_of_the_best_is_chosen():
    choice, _ = chosen({"base": 0.5, "x": 0.7, "y": 0.7, "z": 0.6}, {"x": 3.0, "y": 2.0, "z": 1.0})
    assert choice.leaders == advice.Leaders("x", ("x", "y"), 3)
    assert choice.method == "y"
    assert choice.fusion_wins  # over nothing


def test_a_tenth_of_the_passes_is_no_reason_to_choose_the_less_accurate():
    accuracies = {"base": 0.5, "x": 0.7025, "y": 0.7, "z": 0.7}
    choice, _ = chosen(accuracies, {"x": 1.52, "y": 1.5, "z": 1.6})
    assert choice.leaders.ties == ("x", "y", "z")
    assert choice.method == "x"
    choice, _ = chosen(accuracies, {"x": 1.52, "y": 1.5, "z": 1.4})
    assert choice.method == "z"


def test_what_ties_with_the_most_accurate_is_not_said_to_tie_with_the_choice():
    choice, found = chosen({"base": 0.5, "x": 0.7025, "y": 0.7, "z": 0.7}, {"x": 3.0, "y": 2.0, "z": 4.0})
    told = advice.sentences("base", None, [], found, choice)
    assert told[0].startswith("Use y: ")
    assert told[1] == "It is not significantly different from x, the most accurate; neither is z."
    choice, found = chosen({"base": 0.5, "x": 0.7025, "y": 0.7}, {"x": 3.0, "y": 2.0})
    assert (
        advice.sentences("base", None, [], found, choice)[1]
        == "It is not significantly different from x, the most accurate."
    )


def test_a_variant_is_not_recommended():
    """The best of many sets of options, picked by these numbers, would be picked on the test split."""
    cures = [
        run("cure", s, accuracy, method_options={"alpha": a}) for a, accuracy in ((9, 0.9), (1, 0.7)) for s in range(3)
    ]
    told = words(made([run("base", seed, 0.6) for seed in range(3)] + cures, usual={"cure": {"alpha": 1}}))
    assert "cure (alpha 9)" in told
    assert "Use cure: 10.0 points" in told


def test_a_variant_is_no_remedy():
    """However many there are: they would correct the tests of the others away, too."""

    def records(alphas):
        for seed in range(3):
            yield run("base", seed, 0.6, {"probe/audio": 0.6, "probe/visual": 0.5})
            heads = {"alone/audio": 0.5, "alone/visual": 0.5}
            yield run("apart", seed, 0.7, {**heads, "probe/audio": 0.9, "probe/visual": 0.5})
            for alpha in alphas:
                scores = {"probe/audio": 0.6 if alpha == 1 else 0.9, "probe/visual": 0.5}
                yield run("cure", seed, 0.7, scores, method_options={"alpha": alpha})

    def recovered(alphas):
        return re.search(r"Recovered significantly, audio: .*?\.(?= |$)", words(made([*records(alphas)]))).group()

    assert recovered([1, 9]) == recovered([1]) == recovered([1, *range(9, 40)])
    assert "cure" not in recovered([1, 9])


def test_probes_are_compared_with_probes():
    """A head that was not trained to the end understates what its encoder knows."""

    def records(**more):
        for seed in range(3):
            yield run("base", seed, 0.6, {"probe/audio": 0.6, "probe/visual": 0.5})
            yield run("apart", seed, 0.7, {"alone/audio": 0.5, "alone/visual": 0.5, **more})

    told = words(made(list(records())))
    assert "No modality starves in base" in told
    told = words(made(list(records(**{"probe/audio": 0.9, "probe/visual": 0.5}))))
    assert "audio starves: trained alone a linear probe of its encoder reads 90.0 %, inside base 60.0 %" in told


def test_a_method_with_fewer_seeds_weakens_no_other():
    fused = {"base": hits(0.5), "x": hits(0.7), "late": {0: hits(0.9)[0]}}
    assert advice.leaders(fused, SPLIT) == advice.Leaders("x", ("x",), 3, ("late",))
    assert advice.leaders({"a": hits(0.5, 2), "b": {1: hits(0.5)[1], 2: hits(0.5)[2]}}, SPLIT) is None
    assert advice.leaders({"a": hits(0.5), "b": {}}, SPLIT) is None
    assert advice.leaders({}, SPLIT) is None


def test_none_is_chosen_where_the_reference_ties():
    choice, found = chosen({"base": 0.7, "x": 0.7025, "y": 0.5}, {"x": 1.0, "y": 1.0})
    assert choice.leaders == advice.Leaders("x", ("base", "x"), 3)
    assert choice.method is None
    (told,) = advice.sentences("base", None, [], found, choice)[:1]
    assert told == ("None of them: base is not significantly different from x, the most accurate.")


def test_what_ties_with_the_reference_is_not_recommended():
    """A method may beat the reference while the best, which is noisier, does not."""
    fused = {"base": hits(0.7), "x": hits(0.7025)}
    gain = Verdict(0.0025, 0.001, 0.004, 4.0, 4.0, 9.0, 1.0, 0.02)
    assert gain.kind == DIFFERENT
    choice = advice.choose(fused, "base", [advice.Remedy("x", gain, {}, (), 1.0)], SPLIT)
    assert choice.leaders.ties == ("base", "x")
    assert choice.method is None


def test_what_is_too_noisy_is_neither_a_tie_nor_recommended():
    wild = {seed: hits(p, samples=4000)[seed] for seed, p in enumerate((0.9, 0.3, 0.8))}
    fused = {"base": hits(0.5, samples=4000), "x": hits(0.95, samples=4000), "wild": wild}
    choice, found = chosen(fused, {"x": 3.0, "wild": 1.0})
    assert choice.leaders == advice.Leaders("x", ("x",), 3, (), ("wild",))
    assert choice.method == "x"
    told = advice.sentences("base", None, [], found, choice)
    assert "Too noisy to say whether they differ from x: wild." in told
    choice, found = chosen({"base": hits(0.5), "wild": {s: hits(p)[s] for s, p in enumerate((0.9, 0.3, 0.8))}}, {})
    assert advice.sentences("base", None, [], found, choice)[0].startswith("None of them can be recommended: wild has")


def told_of(accuracies, passes):
    choice, found = chosen(accuracies, passes, ("apart",))
    return choice, advice.sentences("base", None, [], found, choice, ("apart",))


def test_a_single_modality_that_is_better_makes_it_none_of_them():
    choice, told = told_of({"base": 0.5, "apart": 0.8, "x": 0.6}, {"apart": 1.0, "x": 2.0})
    assert (choice.leaders.best, choice.method, choice.single, choice.fusion_wins) == ("x", "x", "apart", False)
    assert choice.lead.difference == pytest.approx(0.2)
    assert told[0].startswith(
        "None of them for accuracy alone: the best single modality, trained alone (apart), is 20.0"
    )
    assert told[0].endswith("more accurate than x.")
    assert told[1].startswith("To fuse the modalities, use x: 10.0 points (95 % interval ")
    assert told[1].endswith("more accurate than base, at 2.00 times its encoder passes.")
    assert len([s for s in told if "apart" in s]) == 1


def test_a_single_modality_that_is_as_good_makes_it_none_of_them():
    choice, told = told_of({"base": 0.5, "apart": 0.8, "x": 0.8}, {"apart": 1.0, "x": 2.0})
    assert not choice.fusion_wins
    assert told[0].endswith("(apart), is not significantly different from x in accuracy.")


def test_a_single_modality_that_is_worse_is_said_after_the_recommendation():
    choice, told = told_of({"base": 0.5, "apart": 0.6, "x": 0.8}, {"apart": 1.0, "x": 2.0})
    assert choice.fusion_wins
    assert told[0].startswith("Use x: 30.0 points")
    assert told[1].startswith("The best single modality, trained alone (apart), is 20.0 points (95 % interval 8")
    assert told[1].endswith("less accurate than x.")


def test_a_single_modality_is_compared_with_the_best_where_nothing_is_chosen():
    choice, told = told_of({"base": 0.6, "apart": 0.8, "x": 0.6}, {"apart": 1.0, "x": 2.0})
    assert choice.method is None
    assert told[0] == "None of them: base is the most accurate."
    assert told[1].endswith("more accurate than base.")


def test_nothing_is_chosen_without_common_seeds_or_reference():
    assert chosen({"base": hits(0.5), "x": {9: hits(0.9)[0]}}, {})[0] is None
    assert advice.choose({"base": hits(0.5)}, "base", [], SPLIT) is None
    choice, _ = chosen({"x": 0.5, "y": 0.8}, {}, reference=None)
    assert (choice.leaders.best, choice.method) == ("y", None)


def test_one_seed_is_said():
    fused = {"base": hits(0.5, 1), "x": hits(0.8, 1)}
    found = advice.remedies(fused, {}, "base", [], {"x": 1.0}, SPLIT)
    choice = advice.choose(fused, "base", found, SPLIT)
    told = " ".join(advice.sentences("base", None, [], found, choice))
    assert "This rests on one seed" in told
    assert "No run of a single modality is here to compare with" in told


def test_doubts_stand_in_the_overview():
    text = made([run(m, 0, a) for m, a in (("base", 0.5), ("cure", 0.8))], figured=0)
    (line,) = re.findall(r'<tr><th scope="row"><a href="#g1">.*?</tr>', text)
    assert "<b>cure</b>" in line
    assert "no single modality to compare with; one seed" in line
    (line,) = re.findall(r'<tr><th scope="row"><a href="#g1">.*?</tr>', made(starved(), figured=0))
    assert "to compare with" not in line
    assert "one seed" not in line


def test_no_starving_and_no_recovery_are_said():
    lost = advice.gaps({"a": hits(0.6)}, {"a": hits(0.6)}, SPLIT)
    told = " ".join(advice.sentences("base", "probe", lost, [], None))
    assert "No modality starves in base: the largest loss is that of a, 60.0 % alone and 60.0 % inside" in told
    lost = advice.gaps({"a": hits(0.9)}, {"a": hits(0.6)}, SPLIT)
    told = " ".join(advice.sentences("base", "probe", lost, [], None))
    assert "In base, a starves: trained alone its own head reaches 90.0 %, inside base a linear probe of" in told
    alike = " ".join(advice.sentences("base", "probe", lost, [], None, measured="probe"))
    assert "trained alone a linear probe of its encoder reads 90.0 %, inside base 60.0 %" in alike
    assert "Recovered significantly, a: by none." in told
    chance = advice.Remedy("x", Verdict(0.1, -0.05, 0.25, 3.0, 4.0, 9.0, 1.0, 0.02), {"a": 0.1}, (), 1.0)
    assert "Recovered significantly, a: by none." in advice.sentences("base", "probe", lost, [chance], None)
    assert "No probe" not in told
    assert "No probe was recorded" in " ".join(advice.sentences("base", "share", lost, [], None))


def test_sparklines_run_from_low_to_high_and_break_between_phases():
    svg = elements.sparkline([[0.0, 1.0], [0.5]], 0.0, 1.0, "up & down")
    assert 'd="M0.0 26.0L60.0 2.0M120.0 14.0L120.0 14.0"' in svg
    assert 'aria-label="up &amp; down"' in svg
    assert "nan" not in elements.sparkline([[0.5, 0.5]], 0.5, 0.5, "flat")


def test_numbers_in_print():
    assert elements.number(0.12345).text == "12.3"
    assert elements.number(-0.02).text == "−2.0"
    assert elements.number(-0.0001).text == "0.0"
    assert elements.number(2.5, 1, 2).text == "2.50"
    assert elements.number(0.5, sd=0.0123).text == '50.0<span class="sd"> ± 1.2</span>'
    assert elements.number(0.5, sd=float("nan")).text == "50.0"
    missing = elements.number(float("nan"))
    assert missing.value is None
    assert "–" in missing.text


def test_links_end_where_the_address_ends():
    assert elements.linked("A, https://a.b/c.pdf; x") == 'A, <a href="https://a.b/c.pdf">https://a.b/c.pdf</a>; x'
    assert elements.linked("(https://a.b/c).") == '(<a href="https://a.b/c">https://a.b/c</a>).'
    assert elements.linked("<i>") == "&lt;i&gt;"
    assert (
        elements.linked("X, arXiv 2405.17730") == 'X, <a href="https://arxiv.org/abs/2405.17730">arXiv 2405.17730</a>'
    )
    assert elements.prose("As :class:`A`, ``k = 1``.") == "As <code>A</code>, <code>k = 1</code>."


def test_style_and_script_are_small_and_whole():
    folder = Path(page.__file__).parent
    style, script = ((folder / f"page.{suffix}").read_text() for suffix in ("css", "js"))
    assert len(script.splitlines()) < 100
    assert "http" not in style + script
    assert "</" not in style + script
    assert not re.search("@import|@font-face", style)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    assert ":focus-visible" in style


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(theme):
    style = (Path(page.__file__).parent / "page.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", style, re.S)[theme]))
    for ink in ("ink", "soft", "accent", "mark"):
        for paper in ("paper", "tint", "answer"):
            low, high = sorted(luminance(colours[c]) for c in (ink, paper))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def test_scores_are_those_of_the_runs():
    (group,), _ = collect([run("base", s, 0.5 + s / 10) for s in range(3)], "best_val")
    frame = group.scores()
    assert list(frame.index) == ["base"] * 3
    assert frame["accuracy"].tolist() == pytest.approx([0.5, 0.6, 0.7])
    assert isinstance(frame, pd.DataFrame)
