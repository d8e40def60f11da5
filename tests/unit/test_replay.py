"""When a step is recorded, replayed, or run as it is. On a CPU, with a stand-in for the recording itself."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import registry
from balancebench_udi.data.loader import Batch
from balancebench_udi.replay import FIRST, Logs, Recording, Steps
from tests.helpers import Waits, make_trainer, run_steps, tiny_bundle

Joint = registry.methods.get("joint")


class Told(Steps):
    """Notes what it does and replays by running the step."""

    def __init__(self, trainer, batch_size=32, records=True):
        super().__init__(trainer.strategy, torch.device("cpu"), batch_size)
        self.allowed, self.records, self.did = True, records, []

    def _step(self, batch):
        self.did.append("step")
        return super()._step(batch)

    def _record(self, batch):
        self.did.append("record")
        return Recording(None, batch, Logs(("loss",), torch.zeros(1)), {}, {}) if self.records else None

    def _replay(self, recording, batch):
        self.did.append("replay")
        return recording.logs


@pytest.fixture
def trainer():
    trainer = make_trainer(tiny_bundle(2), "joint")
    trainer.task.phase = trainer.strategy.phase(0)
    trainer.task.optimizer = trainer.task.make_optimizer(trainer.strategy.parameters())
    return trainer


def batch(trainer, count=32, keep=False):
    split = trainer.loader.bundle.train
    hidden = {m: torch.ones(count, dtype=torch.bool) for m in split.inputs} if keep else None
    return Batch({m: x[:count] for m, x in split.inputs.items()}, split.target[:count], torch.arange(count), hidden)


def test_the_first_steps_run_one_is_recorded_and_the_rest_replayed(trainer):
    steps = Told(trainer)
    for _ in range(FIRST + 3):
        steps(batch(trainer), 0, 0.1)
    assert steps.did == ["step"] * FIRST + ["record"] + ["replay"] * 3


@pytest.mark.parametrize("change", ["learning rate", "phase", "key", "keep"])
def test_whatever_a_step_depends_on_makes_another_recording(trainer, change, monkeypatch):
    steps = Told(trainer)
    for _ in range(FIRST + 2):
        steps(batch(trainer), 0, 0.1)
    steps.did.clear()
    if change == "key":
        monkeypatch.setattr(trainer.strategy, "replay_key", lambda: "another", raising=False)
    for _ in range(FIRST + 2):
        steps(batch(trainer, keep=change == "keep"), int(change == "phase"), 0.01 if change == "learning rate" else 0.1)
    assert steps.did == ["step"] * FIRST + ["record"] + ["replay"] * 2


def test_a_smaller_batch_runs_as_it_is_and_leaves_the_recording(trainer):
    steps = Told(trainer)
    for count in [32] * (FIRST + 1) + [7, 32]:
        steps(batch(trainer, count), 0, 0.1)
    assert steps.did == ["step"] * FIRST + ["record", "replay", "step", "replay"]


def test_a_step_that_cannot_be_recorded_runs_as_it_is_for_good(trainer):
    steps = Told(trainer, records=False)
    for _ in range(FIRST + 3):
        steps(batch(trainer), 0, 0.1)
    assert steps.did == ["step"] * FIRST + ["record"] + ["step"] * 3


def test_a_method_that_gives_no_key_is_never_recorded(trainer, monkeypatch):
    monkeypatch.setattr(trainer.strategy, "replay_key", lambda: None)
    steps = Told(trainer)
    for _ in range(FIRST + 3):
        steps(batch(trainer), 0, 0.1)
    assert set(steps.did) == {"step"}


def test_on_a_cpu_nothing_is_recorded(trainer):
    assert not trainer.steps.allowed
    assert trainer.run()["result"]["curves"]
    assert trainer.steps.replayed == 0


def test_logs_may_be_numbers_too(trainer, monkeypatch):
    monkeypatch.setattr(trainer.strategy, "step", lambda batch: {"loss": torch.tensor(2.0), "count": 3.0})
    logs = trainer.steps(batch(trainer), 0, 0.1)
    assert logs.names == ("loss", "count")
    assert logs.values.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("method", "options", "keys"),
    [
        ("ogm", {"window": (0.0, 0.5)}, 2),
        ("agm", {"window": (0.0, 0.5)}, 2),
        ("pmr", {"window": (0.0, 0.5), "entropy_until": 0.25}, 3),
        ("joint", {}, 1),
        ("mmpareto", {}, 1),
    ],
)
def test_a_key_changes_with_the_window(method, options, keys):
    trainer = make_trainer(tiny_bundle(2), method, options, epochs=8)
    seen = set()
    for trainer.task.epoch in range(8):
        seen.add(trainer.strategy.replay_key())
    assert len(seen) == keys


@pytest.mark.parametrize("method", registry.methods.names())
def test_no_step_would_wait_for_a_gpu(method):
    """What tests/gpu asks of the driver, as far as the operations tell it on a CPU."""
    trainer, waits = make_trainer(tiny_bundle(2, "image"), method), Waits()
    step = trainer.strategy.step

    def watched(batch):
        with waits:
            return step(batch)

    trainer.strategy.step = watched
    run_steps(trainer, 3)
    assert waits.seen == []


@pytest.mark.parametrize(
    "plant", [lambda x: float(x.sum()), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x[0] > 0)]
)
def test_waits_are_seen(plant):
    with Waits() as waits:
        plant(torch.ones(3))
    assert len(waits.seen) == 1


class Operations(TorchDispatchMode):
    """Counts the operations that a GPU would launch kernels for: neither views nor new memory."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "empty" in str(func))
        return func(*args, **(kwargs or {}))


def operations(method):
    """Of the second step of a training with two convolutional encoders."""
    trainer, counts = make_trainer(tiny_bundle(2, "image"), method), []
    step = trainer.strategy.step

    def counted(batch):
        with Operations() as seen:
            logs = step(batch)
        counts.append(seen.count)
        return logs

    trainer.strategy.step = counted
    run_steps(trainer, 2)
    return counts[1]


@pytest.mark.parametrize(
    ("method", "most"),
    [("uniform", 1.3), ("ogm", 1.4), ("ogm_ge", 1.5), ("pmr", 2.3), ("agm", 3.2), ("mmpareto", 3.2), ("udi", 0.7)],
)
def test_a_method_launches_few_operations_beside_its_passes(method, most):
    """On a GPU small ones count: AGM once encoded a single sample by itself, at the launches of a batch."""
    assert operations(method) <= most * operations("joint")
