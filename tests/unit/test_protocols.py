"""The presets hold what papers and codes have, a run gets it, and options of one dataset come over those of all."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import registry
from balancebench_udi.errors import UserError
from balancebench_udi.protocol import check_names, load_protocol
from balancebench_udi.report.published import Claim
from balancebench_udi.runner import plan, resolve_precision
from balancebench_udi.spec import RunSpec, Schedule
from balancebench_udi.strategy import Task
from balancebench_udi.trainer import schedule_factor
from benchmarks import reproduction
from benchmarks.command import PROTOCOLS
from benchmarks.report import protocol_options
from benchmarks.run import make_plan, parser
from benchmarks.table_specs import Column, Row, wanted
from tests.helpers import tiny_bundle

PRESETS = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))
SGD = {"name": "sgd", "momentum": 0.9}
CODE = {"coef": "hard", "mu": 0.0}
"""PMR as its code has it: weights of 0 or 1, no entropy term."""
OGM_FRAMES = {"fps": 1, "sampling": "as_published"}
"""Frames that OGM-GE's script extracts, which others took over."""
THIRDS = {"fps": 1, "n_frames": 3, "pick": "segment"}
"""Frames of Kinetics-Sounds by InfoReg and BalanceBenchmark."""


@functools.cache
def run_of(protocol: str, dataset: str, method: str = "joint") -> RunSpec:
    """The run that is planned, on made-up data under the name and the options of ``dataset``."""
    preset = resolve_precision(load_protocol(protocol, PROTOCOLS, {}, dataset), torch.device("cpu"))
    data = registry.datasets.get(dataset)
    made = data(data.Options.build(dataset, preset.datasets.get(dataset, {})))
    (job,) = plan({method: registry.methods.get(method)}, made, tiny_bundle(), preset, [0], {}, {})
    return job.spec


def under(protocol: str, dataset: str, owner: str) -> dict[str, Any]:
    """The options of ``owner``, which is ``run``, ``optimizer``, the dataset or a method, in such a run."""
    if owner == "run":
        return run_of(protocol, dataset).as_dict()
    if owner in ("optimizer", dataset):
        spec = run_of(protocol, dataset).as_dict()
        return spec["optimizer"] if owner == "optimizer" else spec["dataset_options"]
    return run_of(protocol, dataset, owner).as_dict()["method_options"]


def row(protocol: str, dataset: str, owner: str, **options: Any) -> list[Any]:
    """One parameter for each option of ``owner``."""
    return [
        pytest.param(protocol, dataset, owner, name, value, id=f"{protocol}-{dataset}-{owner}.{name}")
        for name, value in options.items()
    ]


# Written from the specifications of the methods and of BalanceBenchmark, not from the presets. The comment names the
# section: C is core_methods, O is other_methods, D is data_corrections, which stands over the others.
TABLE = [
    # C 1.7 and 11.1, the house
    *row("default", "cremad", "run", epochs=100, batch_size=64, fusion="concat", precision="fp32"),
    *row("default", "cremad", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
    *row("default", "cremad", "cremad", split="OGM-GE", audio="ogm_stft", fps=3, n_frames=3, val_share=0.1),  # C 10.1
    *row("default", "cremad", "ogm_ge", alpha=0.8, noise=True, k_form="tanh_alpha_rho"),  # C 2.3
    *row("default", "cremad", "agm", alpha=1.5, cap=10.0, clip_above=1.0, clip_norm=1.0),  # C 3.3
    *row("default", "cremad", "pmr", alpha=1.0, coef="clip", mu=1e-2, entropy_until=0.1, momentum=0.2),  # C 4.3
    *row("default", "cremad", "mmpareto", gamma=1.5, rescale="tensor"),  # C 5.4
    *row("speaker", "cremad", "cremad", split="speaker", fold=0),
    *row("speaker", "cremad", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
    # of which runs are recorded: what they were trained with
    *row("laptop", "cgmnist", "run", epochs=20, batch_size=64, precision="auto"),
    *row("laptop", "cgmnist", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("laptop", "cgmnist", "cgmnist", train_size=8000),
    *row("laptop", "cgmnist", "agm", alpha=0.5),
    *row("laptop", "avdigits", "avdigits", pairs_per_recording=3, eval_pairs_per_recording=3),
    *row("small", "cgmnist", "run", epochs=16, batch_size=64, precision="auto"),
    *row("small", "cgmnist", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("small", "cgmnist", "cgmnist", train_size=4000),
    *row("small", "cgmnist", "agm", alpha=0.5),
    *row("small", "avdigits", "avdigits", pairs_per_recording=1, eval_pairs_per_recording=3),
    *row("quick", "mosi", "run", epochs=30, batch_size=64, precision="fp32"),
    *row("quick", "mosi", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("quick", "mosi", "agm", alpha=0.5),
    *row("features", "mosi", "run", epochs=60, batch_size=64, precision="fp32"),
    *row("features", "mosi", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("features", "mosi", "agm", alpha=0.5),
    *row("pmr", "cgmnist", "cgmnist", train_size=0),
    *row("pmr", "cgmnist", "ogm", alpha=0.2),  # C 2.3
    *row("pmr", "cgmnist", "ogm_ge", alpha=0.2),
    *row("pmr", "cgmnist", "pmr", alpha=1.0, window=[0.0, 0.6], coef="clip", mu=1e-2, momentum=0.2),  # C 4.3
    # C 1.7, 2.3, 10.1, 10.2, 10.7; frames as meant, C 2.4.6
    *row("ogm", "cremad", "run", epochs=100, batch_size=64, fusion="concat", test_each_epoch=True),
    *row("ogm", "cremad", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
    *row("ogm", "cremad", "cremad", split="OGM-GE", audio="ogm_stft", n_frames=1, pick="random", **OGM_FRAMES),
    *row("ogm", "cremad", "ogm", alpha=0.8, noise=False),
    *row("ogm", "cremad", "ogm_ge", alpha=0.8, noise=True),
    *row("ogm", "cremad", "pmr", alpha=2.0),  # C 4.3
    *row("ogm", "vggsound", "ogm", alpha=0.1),
    *row("ogm", "vggsound", "ogm_ge", alpha=0.1, noise=True),
    *row("ogm", "vggsound", "vggsound", audio="vgg_stft", n_frames=3, pick="random", **OGM_FRAMES),
    *row("ogm", "kinetics_sounds", "ogm_ge", alpha=0.8),
    *row("ogm", "kinetics_sounds", "kinetics_sounds", split="OGM-GE", audio="fbank", fps=1, n_frames=3, pick="start"),
    # C 1.7, 4.3, 10.1, 10.6; D A5, A6; options of the scripts for concat fusion
    *row("pmr", "cremad", "run", epochs=100, batch_size=64, fusion="concat", test_each_epoch=True),
    *row("pmr", "cremad", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
    *row("pmr", "cremad", "cremad", split="OGM-GE", audio="pmr_299", n_frames=3, pick="first", **OGM_FRAMES),
    *row("pmr", "cremad", "ogm", alpha=0.1),  # C 2.3
    *row("pmr", "cremad", "ogm_ge", alpha=0.1),
    *row("pmr", "cremad", "pmr", alpha=2.0, coef="clip", mu=1e-2, momentum=0.2),  # C 4.3
    *row("pmr", "ave", "ave", audio="pmr_1004", n_frames=4, segment="event", pick="first", **OGM_FRAMES),
    *row("pmr", "ave", "ogm", alpha=0.2),  # C 2.3
    *row("pmr", "ave", "ogm_ge", alpha=0.2),
    *row("pmr", "ave", "pmr", alpha=2.0, coef="clip", mu=1e-2, momentum=0.2),  # C 4.3
    # C 3.3, 10.1; D A5, A8
    *row("agm", "cremad", "run", epochs=100, batch_size=64),
    *row("agm", "cremad", "cremad", split="OGM-GE", audio="ogm_stft", n_frames=1, pick="centre", **OGM_FRAMES),
    *row("agm", "cremad", "agm", alpha=1.5, cap=10.0, clip_above=1.0, clip_norm=1.0),
    # C 1.7, 5.4, 10.1
    *row("mmpareto", "cremad", "run", epochs=50, batch_size=64, fusion="concat", test_each_epoch=True),
    *row("mmpareto", "cremad", "optimizer", **SGD, lr=2e-3, weight_decay=1e-4),
    *row("mmpareto", "cremad", "cremad", split="OGM-GE", audio="fbank", n_frames=2, pick="segment"),
    *row("mmpareto", "cremad", "mmpareto", gamma=1.5, rescale="tensor", weights="pareto"),
    *row("mmpareto", "kinetics_sounds", "kinetics_sounds", split="OGM-GE", audio="fbank", **THIRDS),
    # C 1.7, 7.5, 9, 10; O 7; D A5, A7; hyper-parameters C 2.3, 3.3, 4.3 and 4.5, 5.4
    *row("balancebenchmark", "cremad", "run", epochs=30, batch_size=32, fusion="concat", test_each_epoch=True),
    *row("balancebenchmark", "cremad", "optimizer", name="adamw", lr=1e-3, weight_decay=1e-2),
    *row("balancebenchmark", "cremad", "cremad", split="OGM-GE", audio="fbank", n_frames=2, pick="segment"),
    *row("balancebenchmark", "cremad", "ogm", alpha=0.3),
    *row("balancebenchmark", "cremad", "ogm_ge", alpha=0.3, noise=True),
    *row("balancebenchmark", "cremad", "agm", alpha=0.1),
    *row("balancebenchmark", "cremad", "pmr", alpha=0.6, **CODE, momentum=0.5),
    *row("balancebenchmark", "cremad", "mmpareto", gamma=1.5),
    *row("balancebenchmark", "kinetics_sounds", "kinetics_sounds", audio="fbank", **THIRDS),
    *row("balancebenchmark", "vggsound", "vggsound", split="official", audio="fbank", **THIRDS),
    *row("balancebenchmark", "ucf101", "ucf101", split="1", candidates=6, n_frames=3, pick="segment"),  # C 10.4
    *row("balancebenchmark", "food101", "food101", split="titles", text="tokens", length=40),  # C 10.5
    *row("balancebenchmark", "mosei", "mosei", file="mosei_senti_data_noalign.pkl", label="binary"),  # C 10.8
    *row("balancebenchmark", "mosei", "mosei", text_steps=50, audio_steps=500, video_steps=500, standardise=False),
    # C 1.7, 2.2, 2.3, 10.2; D A4
    *row("bml", "kinetics_sounds", "run", epochs=100, batch_size=32, fusion="concat"),
    *row("bml", "kinetics_sounds", "optimizer", name="adamw", lr=5e-5, weight_decay=1e-2),
    *row("bml", "kinetics_sounds", "kinetics_sounds", split="BML-val", n_frames=3, pick="bml", same_crop=True),
    *row("bml", "kinetics_sounds", "kinetics_sounds", crop_area=0.25, view="centre", size=112, augment=True),
    *row("bml", "kinetics_sounds", "ogm", alpha=0.8),
    *row("bml", "kinetics_sounds", "ogm_ge", alpha=0.8, k_form="tanh_alpha_rho"),
    # C 1.7, 10.1, 10.2; O 3.12; D A5, A7, A8
    *row("inforeg", "cremad", "run", epochs=50, batch_size=64),
    *row("inforeg", "cremad", "optimizer", **SGD, lr=2e-3, weight_decay=1e-4),
    *row("inforeg", "cremad", "cremad", split="OGM-GE", audio="ogm_stft", n_frames=3, pick="random"),
    *row("inforeg", "cremad", "cremad", fps=3, sampling="as_published"),
    *row("inforeg", "kinetics_sounds", "kinetics_sounds", audio="fbank", **THIRDS),
    # C 10.1, 10.5; O 3.2; D A5
    *row("mla", "cremad", "run", epochs=100, batch_size=64),
    *row("mla", "cremad", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
    *row("mla", "cremad", "cremad", audio="fbank_raw", n_frames=3, pick="start", **OGM_FRAMES),
    *row("mla", "food101", "food101", split="jsonl", length=256),
    # C 10.1; O 3.14; D A3
    *row("relearning", "cremad", "run", epochs=90, batch_size=64, test_each_epoch=True),
    *row("relearning", "cremad", "optimizer", **SGD, lr=2e-3, weight_decay=1e-4),
    *row(
        "relearning", "cremad", "cremad", split="relearning", audio="fbank", n_frames=2, pick="segment", augment=False
    ),
    *row("relearning_baseline", "cremad", "run", epochs=90, batch_size=64, test_each_epoch=True),
    *row("relearning_baseline", "cremad", "optimizer", **SGD, lr=2e-3, weight_decay=1e-4),
    *row("relearning_baseline", "cremad", "cremad", split="OGM-GE", audio="fbank", n_frames=2, pick="segment"),
    *row("relearning_baseline", "cremad", "cremad", augment=True, same_crop=False),
    # C 1.7, 10.1; D A5, A9
    *row("igm", "kinetics_sounds", "run", epochs=100, batch_size=64),
    *row("igm", "kinetics_sounds", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("igm", "kinetics_sounds", "kinetics_sounds", audio="igm_stft", n_frames=3, pick="first", **OGM_FRAMES),
    # udi_paper 2
    *row("udi", "cremad", "run", epochs=100, batch_size=64, fusion="sum", precision="auto", test_each_epoch=True),
    *row("udi", "cremad", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("udi", "cremad", "cremad", split="OGM-GE", audio="pmr_299", fps=1, n_frames=2, pick="random"),
    *row("udi", "kinetics_sounds", "run", epochs=100),
    *row("udi", "kinetics_sounds", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("udi", "kinetics_sounds", "kinetics_sounds", fps=1, n_frames=3),
    *row("udi", "cgmnist", "run", epochs=20, batch_size=64, fusion="sum"),
    *row("udi", "cgmnist", "optimizer", **SGD, lr=1e-2, weight_decay=1e-4),
    *row("udi", "cgmnist", "cgmnist", train_size=0, recipe="published"),
    *row("udi", "ucf101", "run", epochs=100),
    *row("udi", "ucf101", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
    *row("udi", "ucf101", "ucf101", split="1", n_frames=3),
    *row("udi", "food101", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
    *row("udi", "food101", "food101", split="titles", text="tokens", length=40),
    *row("udi", "mosei", "run", epochs=20),
    *row("udi", "mosei", "optimizer", **SGD, lr=1e-3, weight_decay=1e-4),
]

FIRST = [0, 1, 2, 3]
FRAMES = [
    # protocol, dataset, frames of a clip, those shown in testing, from 0; the same in training; D A3 to A8
    ("pmr", "cremad", 3, FIRST[:3], True),
    ("pmr", "ave", 10, FIRST, True),
    ("igm", "kinetics_sounds", 10, FIRST[:3], True),
    ("agm", "cremad", 2, [1], True),
    ("agm", "cremad", 3, [1], True),
    ("agm", "cremad", 4, [2], True),
    ("mla", "cremad", 3, [0, 1, 2], True),
    ("mla", "cremad", 5, [0, 1, 2], True),  # int(5 / 3) apart
    ("ogm", "kinetics_sounds", 11, [0, 3, 6], True),  # files 1, 4, 7
    ("bml", "kinetics_sounds", 10, [9, 3, 8], True),
    ("bml", "kinetics_sounds", 11, [10, 4, 9], True),
    ("relearning", "cremad", 8, [1, 5], True),  # files 2, 6
    ("relearning", "cremad", 7, [0, 3], True),
    ("relearning_baseline", "cremad", 8, [1, 5], False),
    ("mmpareto", "cremad", 8, [1, 5], False),
    ("mmpareto", "ucf101", 6, [0, 2, 4], False),
    ("balancebenchmark", "ucf101", 6, [0, 2, 4], False),  # files 1, 3, 5
    *(
        (p, "kinetics_sounds", n, [0, 3, 6], False)
        for p in ("inforeg", "balancebenchmark", "mmpareto")
        for n in (9, 11)
    ),
    ("balancebenchmark", "vggsound", 10, [0, 3, 6], False),
    ("balancebenchmark", "vggsound", 6, [0, 0, 0], True),
    ("inforeg", "kinetics_sounds", 4, [0, 0, 0], True),
]

WINDOWS = [
    # protocol, dataset, method, first and last epoch (from 0, both in) in which it acts
    ("default", "cremad", "ogm_ge", 0, 50),  # C 2.3
    ("default", "cremad", "agm", 0, 99),  # C 3.3
    ("default", "cremad", "pmr", 0, 70),  # C 4.3, 11.1
    ("ogm", "cremad", "ogm", 0, 50),  # C 2.3
    ("ogm", "cremad", "ogm_ge", 0, 50),
    ("ogm", "vggsound", "ogm", 0, 50),
    ("ogm", "vggsound", "ogm_ge", 0, 50),
    ("agm", "cremad", "agm", 0, 99),  # C 3.3
    ("pmr", "cgmnist", "pmr", 0, 60),  # C 4.3
    ("pmr", "cremad", "pmr", 0, 70),
    ("pmr", "ave", "pmr", 0, 70),
    ("pmr", "cremad", "ogm_ge", 0, 50),  # C 2.3 has 50 and 70
    ("pmr", "ave", "ogm_ge", 0, 50),
    ("balancebenchmark", "cremad", "ogm", 10, 29),  # C 2.3, O 6: 10 to 80 of 30
    ("balancebenchmark", "cremad", "ogm_ge", 10, 29),
    ("balancebenchmark", "cremad", "pmr", 0, 29),  # C 4.3
    ("balancebenchmark", "cremad", "agm", 0, 29),  # C 3.3: its window is ignored
    ("bml", "kinetics_sounds", "ogm", 6, 60),  # C 2.2 and 2.3: 0 to 60, but nothing in 0 to 5
    ("bml", "kinetics_sounds", "ogm_ge", 6, 60),
]

DROPS = [
    # protocol, epochs (from 0) at which the learning rate falls to a tenth
    ("default", [70]),  # C 1.7
    ("speaker", [70]),
    ("ogm", [70]),
    ("pmr", [70]),
    ("agm", [70]),
    ("mmpareto", []),  # C 5.4: built, never stepped
    ("balancebenchmark", [10, 20]),
    ("bml", [40, 80]),
    ("inforeg", [30]),
    ("mla", [70]),  # O 3.2
    ("relearning", []),  # D A3: none is built
    ("relearning_baseline", []),
    ("igm", [70]),  # ours: C 1.7 has "various"
    ("laptop", [14]),
    ("small", [12]),
    ("quick", [21]),
    ("features", [42]),
    ("udi", [70]),  # ours: not stated
]


@pytest.mark.parametrize(("protocol", "dataset", "owner", "name", "value"), TABLE)
def test_a_run_under_a_preset_has_the_value_of_its_source(protocol, dataset, owner, name, value):
    if (owner, name) == ("run", "precision"):  # which a plan has resolved
        assert load_protocol(protocol, PROTOCOLS, {}).run.precision == value
    else:
        assert under(protocol, dataset, owner)[name] == value


@pytest.mark.parametrize(("protocol", "dataset", "count", "shown", "fixed"), FRAMES)
def test_a_clip_is_shown_by_the_frames_of_its_source(protocol, dataset, count, shown, fixed):
    preset = load_protocol(protocol, PROTOCOLS, {})
    data = registry.datasets.get(dataset)
    made = data(data.Options.build(dataset, preset.datasets[dataset]))
    for modality in made.modalities(SimpleNamespace()).values():
        if modality.kind not in ("frames", "flow"):
            continue
        slots = made.options.candidates
        stored = torch.zeros(1, slots, 4, 4, modality.shape[0], dtype=torch.uint8)
        stored[0, :count] = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
        seen = [modality.transform.choose(stored, torch.tensor([0]), None)[0, :, 0, 0, 0].sub(1).tolist()]
        for seed in range(20 if modality.transform.draws else 0):
            draws = torch.rand(1, modality.transform.draws, generator=torch.Generator().manual_seed(seed))
            seen.append(modality.transform.choose(stored, torch.tensor([0]), draws)[0, :, 0, 0, 0].sub(1).tolist())
        assert seen[0] == shown
        assert (seen == [shown] * len(seen)) == fixed


@pytest.mark.parametrize(("protocol", "dataset", "method", "first", "last"), WINDOWS)
def test_a_method_acts_in_the_epochs_of_its_source(protocol, dataset, method, first, last):
    spec = run_of(protocol, dataset, method)
    task, window = SimpleNamespace(epochs=spec.epochs), tuple(spec.method_options["window"])
    assert [e for e in range(spec.epochs) if Task.within(task, window, e)] == list(range(first, last + 1))


@pytest.mark.parametrize(("protocol", "epochs"), DROPS, ids=[protocol for protocol, _ in DROPS])
def test_the_learning_rate_falls_at_the_epochs_of_its_source(protocol, epochs):
    spec = run_of(protocol, "cremad")
    factors = [schedule_factor(Schedule(**spec.schedule), e / spec.epochs) for e in range(spec.epochs)]
    assert factors == pytest.approx([0.1 ** sum(e >= drop for drop in epochs) for e in range(spec.epochs)])


def test_no_preset_is_left_out():
    assert {param.values[0] for param in TABLE} == {protocol for protocol, _ in DROPS} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_what_is_here(name):
    protocol = load_protocol(name, PROTOCOLS, {})
    check_names(protocol, registry.methods.names(), registry.datasets.names())
    for dataset, options in protocol.datasets.items():
        registry.datasets.get(dataset).Options.build(dataset, options)
    for dataset in registry.datasets.names():
        for method, options in protocol.options_on(dataset).items():
            registry.methods.get(method).Options.build(method, options)


def test_tables_and_claims_want_the_run_that_is_planned():
    for protocol, dataset, method in sorted({(p, d, m) for p, d, m, *_ in WINDOWS}):
        planned = run_of(protocol, dataset, method).as_dict()
        column = Column("c", dataset, protocol)
        spec = wanted(Row("r", method), column, "best_val").spec
        assert {name: planned[name] for name in spec} == spec
        claim = claim_of(method, dataset)
        found = reproduction.wanted(claim, protocol)
        assert {name: planned[name] for name in found.fields} == found.fields


def claim_of(method, dataset):
    """A published number of it, as the presets have them."""
    made = dict.fromkeys(Claim.__dataclass_fields__)
    return Claim(**{**made, "method": method, "dataset": dataset, "settings": (), "select": "best_test"})


def test_the_report_names_variants_by_what_the_protocol_sets_on_their_dataset():
    found = {d: protocol_options({"protocol": "pmr+", "protocol_version": 1, "dataset": d}) for d in ("cremad", "mosi")}
    assert (found["cremad"]["pmr"]["alpha"], found["cremad"]["ogm"]["alpha"]) == (2.0, 0.1)
    assert found["mosi"] == load_protocol("pmr", PROTOCOLS, {}).methods


# options of one dataset

MINE = """
methods:
  ogm: {alpha: 0.3, window: [0.0, 0.25]}
  agm: {alpha: 0.7}
methods_on:
  digits:
    ogm: {alpha: 0.4}
    pmr: {mu: 0.0}
  mosi:
    agm: {alpha: 0.9}
"""


@pytest.fixture
def mine(tmp_path):
    """``mine("methods: ...")``: the path of a protocol with these sections."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def planned(path, *arguments, methods="ogm,agm,pmr"):
    """Method -> its options, planned on digits."""
    words = ["--dataset", "digits", "--protocol", path, "--methods", methods, "--seeds", "0", "--device", "cpu"]
    jobs = make_plan(parser().parse_args([str(word) for word in (*words, "--out", path.parent, *arguments)]))[0]
    return {job.spec.method: job.spec.method_options for job in jobs}


def test_options_of_a_dataset_come_over_those_of_the_method(mine):
    protocol = load_protocol(str(mine(MINE)), PROTOCOLS, {})
    assert protocol.options_on("digits") == {
        "ogm": {"alpha": 0.4, "window": [0.0, 0.25]},
        "agm": {"alpha": 0.7},
        "pmr": {"mu": 0.0},
    }
    assert protocol.options_on("mosi") == {"ogm": {"alpha": 0.3, "window": [0.0, 0.25]}, "agm": {"alpha": 0.9}}
    assert protocol.options_on("cgmnist") == protocol.methods
    assert protocol.name == "mine"


def test_a_run_has_the_options_of_its_dataset_and_the_command_line_comes_over_them(mine):
    path = mine(MINE)
    found = planned(path)
    assert (found["ogm"]["alpha"], found["ogm"]["window"]) == (0.4, [0.0, 0.25])
    assert (found["agm"]["alpha"], found["pmr"]["mu"], found["pmr"]["alpha"]) == (0.7, 0.0, 1.0)
    assert planned(path, "--set", "ogm.alpha=0.6")["ogm"] == {**found["ogm"], "alpha": 0.6}


def test_options_of_another_dataset_change_no_key(mine):
    common = MINE.split("methods_on:", maxsplit=1)[0]
    path = str(mine(common))
    alone = {m: run_of(path, "digits", m).key for m in ("ogm", "agm", "pmr")}
    run_of.cache_clear()
    mine(f"{common}methods_on:\n  mosi: {{ogm: {{alpha: 0.9}}, agm: {{cap: none}}}}\n")
    assert {m: run_of(path, "digits", m).key for m in alone} == alone
    assert run_of(path, "mosi", "ogm").method_options["alpha"] == 0.9
    run_of.cache_clear()


def test_a_run_has_the_settings_of_its_dataset_and_the_command_line_comes_over_them(mine):
    here = "{digits: {run: {epochs: 3}, optimizer: {lr: 0.5}}, mosi: {run: {epochs: 2}}}"
    path = str(mine(f"run: {{epochs: 5}}\nrun_on: {here}\n"))
    found = {d: load_protocol(path, PROTOCOLS, {}, d) for d in ("digits", "mosi", "cgmnist")}
    assert {d: p.run.epochs for d, p in found.items()} == {"digits": 3, "mosi": 2, "cgmnist": 5}
    assert found["digits"].optimizer.lr == 0.5
    assert {p.name for p in found.values()} == {"mine"}  # the preset as it is
    changed = load_protocol(path, PROTOCOLS, {"run": {"epochs": 7}}, "digits")
    assert (changed.run.epochs, changed.optimizer.lr, changed.name) == (7, 0.5, "mine+")
    column = Column("c", "digits", path)
    assert wanted(Row("r", "joint"), column, "best_val").spec["epochs"] == 3
    assert wanted(Row("r", "joint", epochs="2x"), column, "best_val").spec["epochs"] == 6
    run_of.cache_clear()
    assert run_of(path, "digits").optimizer["lr"] == 0.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "methods_on: {cremed: {ogm: {alpha: 1}}}",
            "a dataset in methods_on of protocol mine must be one that is here, found 'cremed'; did you mean 'cremad'?",
        ),
        (
            "methods_on: {cremad: {omg: {alpha: 1}}}",
            "a method in methods_on.cremad of protocol mine must be one that is here, found 'omg'; did you mean 'ogm'",
        ),
        (
            "methods: {ogmge: {alpha: 1}}",
            "a method in methods of protocol mine must be one that is here, found 'ogmge'; did you mean 'ogm_ge'",
        ),
        (
            "datasets: {digit: {val_share: 0.2}}",
            "a dataset in datasets of protocol mine must be one that is here, found 'digit'; did you mean 'digits'",
        ),
        ("methods_on: {5: {}}", "mine.yaml must have texts as keys, found 5 in line 1: put it in quotes"),
        ("methods_on: {digits: {ogm: {alpa: 1}}}", "ogm has no option 'alpa'; did you mean 'alpha'?"),
        ("methods_on: {digits: {ogm: {alpha: -1}}}", "ogm.alpha must be >= 0, found -1.0"),
        ("methods_on: {digits: 5}", "methods_on.digits of mine.yaml must hold methods with options, found 5"),
        ("methods_on: {digits: }", "methods_on.digits of mine.yaml must hold methods with options, found None"),
        (
            "methods_on: {digits: {ogm: 5}}",
            "methods_on.digits.ogm of mine.yaml must hold options with values, found 5",
        ),
        ("methods_on: [digits]", "section 'methods_on' of mine.yaml must hold names with values, found ['digits']"),
        ("run_on: {digit: {run: {epochs: 2}}}", "a dataset in run_on of protocol mine must be one that is here, found"),
        (
            "run_on: {digits: {methods: {}}}",
            "run_on.digits of mine.yaml has no section 'methods'; known: optimizer, run",
        ),
        ("run_on: {mosi: {run: {epoch: 2}}}", "run_on.mosi.run has no option 'epoch'; did you mean 'epochs'"),
        ("run_on: {digits: {optimizer: 5}}", "run_on.digits.optimizer of mine.yaml must hold options with values"),
        ("run_on: {digits: 5}", "run_on.digits of mine.yaml must hold sections with options, found 5"),
        ("method_on: {digits: {}}", "mine.yaml has no section 'method_on'; did you mean 'methods_on'"),
    ],
)
def test_a_mistake_is_one_sentence(mine, text, sentence):
    path = mine(f"{text}\n")
    with pytest.raises(UserError) as error:
        planned(path)
    said = str(error.value).replace(str(path), path.name)
    assert said.startswith(sentence)
    assert "\n" not in said


@pytest.mark.parametrize("text", ["methods_on:\n", "methods_on: {}\n", "methods_on: {digits: {}}\n"])
def test_a_section_may_be_empty(mine, text):
    assert planned(mine(text)) == planned(mine("version: 1\n"))


def test_a_table_refuses_a_name_that_is_not_here(mine):
    path = mine("methods_on: {cremed: {ogm: {alpha: 1}}}\n")
    with pytest.raises(UserError, match=re.escape("found 'cremed'; did you mean 'cremad'?")):
        wanted(Row("r", "joint"), Column("c", "digits", str(path)), "best_val")
