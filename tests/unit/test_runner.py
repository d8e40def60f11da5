"""What a record says of the cost of its run: operations against closed forms, memory against what must be held."""

import gc
import os
import weakref

import torch

import registry
from balancebench_udi import runner
from balancebench_udi.store import Store, read_record
from tests.helpers import make_trainer, tiny_bundle

SAMPLES = 96
EPOCHS = 3
SIZES = {"audio": (12, 1024, 1024), "visual": (10, 24, 24, 24)}
"""Of the layers of each encoder, from its input on."""


class Silent:
    """A progress bar that nobody sees."""

    n = 0.0
    total = 0.0

    def update(self, n):
        self.n += n

    def set_description(self, desc, refresh):
        pass


def layers(m):
    return list(zip(SIZES[m], SIZES[m][1:], strict=False))


def record_of(method, folder):
    """The record that a sweep of one run on a CPU leaves."""
    bundle = tiny_bundle(n=(SAMPLES, 32, 40))
    encoders = {m: {"name": "mlp", "width": sizes[1], "depth": len(sizes) - 1} for m, sizes in SIZES.items()}
    trainer = make_trainer(bundle, method, encoders=encoders, epochs=EPOCHS)
    job = runner.Job(trainer.spec, registry.methods.get(method), trainer.strategy.options, bundle)
    outcome = runner.run_all([job], Store(folder), torch.device("cpu"), bar=Silent())
    assert outcome.done == [job]
    return read_record(Store(folder).record_path(job.spec))


def test_operations_are_two_a_weight_forward_and_four_backward(tmp_path):
    """A multiplication and an addition a weight; biases and activations are not counted."""
    cost = record_of("joint", tmp_path)["cost"]
    forward = {m: 2 * sum(a * b for a, b in layers(m)) for m in SIZES}
    assert forward["visual"] == 2 * (10 * 24 + 24 * 24 + 24 * 24)
    assert cost["flops_per_sample"] == forward
    assert cost["flops"] == SAMPLES * EPOCHS * 3 * sum(forward.values())


def test_a_pass_of_one_modality_costs_its_own_encoder():
    bundle = tiny_bundle()
    trainer = make_trainer(bundle, "joint")  # two layers of 16
    job = runner.Job(trainer.spec, registry.methods.get("joint"), trainer.strategy.options, bundle)
    passes = {"forward": {"audio": 7, "visual": 5}, "backward": {"audio": 3, "visual": 0}}
    audio, visual = 2 * (12 * 16 + 16 * 16), 2 * (10 * 16 + 16 * 16)
    assert runner._compute(job, passes)["flops"] == audio * (7 + 2 * 3) + visual * 5


def test_peak_memory_holds_the_network_and_fits_the_machine(tmp_path):
    found = record_of("joint", tmp_path)["cost"]["peak_memory_bytes"]
    parameters = sum(a * b + b for m in SIZES for a, b in layers(m))
    assert found > 0
    assert found >= 3 * 4 * parameters  # weights, gradients and momentum in float32
    assert found <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_peak_memory_is_that_of_the_run_not_of_the_process(tmp_path):
    large = torch.ones(10**8)  # 400 MB, touched
    during = record_of("joint", tmp_path / "a")["cost"]["peak_memory_bytes"]
    del large
    after = record_of("joint", tmp_path / "b")["cost"]["peak_memory_bytes"]
    assert during - after > 3 * 10**8


def test_a_run_begins_without_those_before_it(tmp_path, monkeypatch):
    """Their trainers would be counted in its peak, and on a GPU leave it less memory."""
    alive, seen = weakref.WeakSet(), []

    class Watched(runner.Trainer):
        def __init__(self, *args):
            seen.append(len(alive))
            super().__init__(*args)
            alive.add(self.strategy)

    monkeypatch.setattr(runner, "Trainer", Watched)
    gc.disable()
    try:
        for name in "abc":
            record_of("joint", tmp_path / name)
    finally:
        gc.enable()
    assert seen == [0, 0, 0]


def test_a_system_that_cannot_measure_memory_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_reset_peak_memory", lambda device: False)
    assert record_of("joint", tmp_path)["cost"]["peak_memory_bytes"] is None


def test_a_sweep_with_nothing_to_do_draws_no_bar(tmp_path, capsys):
    trainer = make_trainer(tiny_bundle(), "joint")
    job = runner.Job(trainer.spec, registry.methods.get("joint"), trainer.strategy.options, tiny_bundle())
    drawn = []
    for _ in range(2):
        assert runner.run_all([job], Store(tmp_path), torch.device("cpu")).done == [job]
        drawn.append(capsys.readouterr().err)
    assert "step" in drawn[0]
    assert drawn[1] == ""
