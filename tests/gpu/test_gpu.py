"""On a CUDA device: the same numbers as on the CPU, no wait for the device inside a step, resume to the same bytes."""

import pytest
import torch

import registry
from balancebench_udi.data import loader
from balancebench_udi.data.base import Bundle, Modality, Split
from balancebench_udi.data.frames import FrameTransform
from balancebench_udi.nets.encoders import build_encoder
from tests.helpers import make_trainer, tiny_bundle

pytestmark = pytest.mark.gpu
METHODS = list(registry.METHODS)
CALM = {"ogm_ge": {"noise": False}, "pmr": {"subset": 1.0}}
"""Options with which a method draws nothing from the generator of its device."""


@pytest.mark.parametrize("name", METHODS)
def test_cpu_and_gpu_agree(name):
    bundle = tiny_bundle(2, kind="image", dtype=torch.float64)
    runs = [make_trainer(bundle, name, CALM.get(name), device=device, epochs=2).run() for device in ("cpu", "cuda")]
    for here, there in zip(*(r["result"]["curves"] for r in runs), strict=True):
        assert here["train"] == pytest.approx(there["train"], rel=1e-5, abs=1e-6)
        assert here["val"]["loss"] == pytest.approx(there["val"]["loss"], rel=1e-5)


def run_without_waits(trainer):
    """The whole run, with an error where a step waits for the device."""
    step = trainer.strategy.step

    def guarded(batch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.strategy.step = guarded
    trainer.run()


@pytest.mark.parametrize("name", METHODS)
def test_no_wait_for_the_device_inside_a_step(name):
    run_without_waits(make_trainer(tiny_bundle(2, kind="image"), name, device="cuda", epochs=1))


@pytest.fixture
def deterministic(monkeypatch):
    """As every command of ours sets it."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_bytes_on_the_gpu(name, deterministic):
    bundle = tiny_bundle(2, kind="image")
    assert (
        make_trainer(bundle, name, device="cuda").run()["result"]
        == (make_trainer(bundle, name, device="cuda").run()["result"])
    )


def replayed_and_not(bundle, name, **overrides):
    """The same run twice, first with replayed steps, then without: the trainers and their results."""
    trainers = [make_trainer(bundle, name, device="cuda", **overrides) for _ in range(2)]
    trainers[1].steps.allowed = False
    results = [trainer.run()["result"] for trainer in trainers]
    assert trainers[1].steps.replayed == 0
    return trainers, results


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_give_the_same_bytes(name, modalities, deterministic):
    """Partial batches, a change of the learning rate and the ends of windows come between; so do counted passes."""
    bundle = tiny_bundle(modalities, kind="image", n=(170, 32, 32))
    trainers, (replayed, plain) = replayed_and_not(bundle, name, epochs=6, schedule={"name": "step", "at": 0.5})
    assert trainers[0].steps.allowed
    assert trainers[0].steps.replayed > 6
    assert replayed == plain


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replayed_clips_give_the_same_bytes(optimizer, deterministic):
    overrides = {"epochs": 2, "batch_size": 16, "precision": "bf16", "optimizer": {"name": optimizer, "lr": 0.001}}
    trainers, (replayed, plain) = replayed_and_not(clips(96), "joint", **overrides)
    assert trainers[0].steps.replayed > 6
    assert replayed == plain


@pytest.mark.parametrize("options", [{"controller": "batch"}, {"information": "as_written"}, {"decoupled": False}])
def test_replayed_variants_of_udi_give_the_same_bytes(options, deterministic):
    trainers, (replayed, plain) = replayed_and_not(tiny_bundle(2, kind="image"), "udi", options=options)
    assert trainers[0].steps.replayed > 0
    assert replayed == plain


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_resnet_is_the_same_on_both(channels, training):
    """On a GPU its first convolution has four channels for one, its batch norm in eval mode a backward pass of ours."""
    found = []
    stream = torch.Generator().manual_seed(0)
    for device in ("cpu", "cuda"):
        encoder = build_encoder({"name": "resnet18"}, (channels, 64, 64)).double()
        if found:
            encoder.load_state_dict(found[0][0])
        else:
            for x in (*encoder.parameters(), *encoder.buffers()):
                if x.dim() == 1:  # of batch norm, which would else begin with ones and zeros
                    x.data.uniform_(0.5, 1.5, generator=stream)
        state = {k: v.clone() for k, v in encoder.state_dict().items()}
        encoder.to(device).train(training)
        x = torch.randn(4, channels, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        y = encoder(x.to(device))
        gradients = torch.autograd.grad(y.square().sum(), list(encoder.parameters()))
        found.append((state, [x.detach().cpu() for x in (y, *gradients)]))
    for here, there in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)


class Counts(registry.methods.get("joint")):
    """Counts its steps in Python."""

    name = "counts"
    count = 0

    def step(self, batch):
        Counts.count += 1
        return super().step(batch)


class Silent(Counts):
    """The same, and says so."""

    def replay_key(self):
        return None


class Waits(Counts):
    """A step that cannot be recorded."""

    def step(self, batch):
        logs = super().step(batch)
        return {**logs, "seen": float(logs["loss"])}


def test_what_must_not_be_replayed_is_not():
    for method, replays in ((Counts, True), (Silent, False), (Waits, False)):
        Counts.count = 0
        trainer = make_trainer(tiny_bundle(2, kind="image"), method, device="cuda", epochs=4)
        result = trainer.run()["result"]
        assert (trainer.steps.replayed > 0) == replays
        assert (Counts.count < 12) == replays
        assert result["passes"] == {way: {"audio": 384, "visual": 384} for way in ("forward", "backward")}


def clips(n=48):
    """Frames and spectrograms as a pack holds them."""
    stream = torch.Generator().manual_seed(0)

    def split(count):
        frames = torch.randint(1, 256, (count, 4, 64, 64, 3), dtype=torch.uint8, generator=stream)
        sound = torch.randn(count, 1, 40, 50, generator=stream).half()
        return Split({"audio": sound, "video": frames}, torch.arange(count) % 3)

    modalities = {
        "audio": Modality("spectrogram", (1, 40, 50), "resnet18"),
        "video": Modality("frames", (3, 2, 224, 224), "resnet18", FrameTransform(2, 4)),
    }
    return Bundle(modalities, ("a", "b", "c"), split(n), split(12), split(12), "clips")


def test_read_ahead_gives_the_batches_of_device_memory(monkeypatch):
    """Also those of the CPU: augmentation is drawn there."""
    bundle, batches = clips(), {}
    for where in ("resident", "ahead", "cpu"):
        monkeypatch.setattr(loader, "RESIDENT_SHARE", 0.0 if where == "ahead" else 0.5)
        made = loader.Loader(bundle, torch.device("cpu" if where == "cpu" else "cuda"), 16, 0)
        assert made.splits["train"].target.is_cuda == (where == "resident")
        batches[where] = list(made.train(1, ["audio", "video"]))
    for one, two, three in zip(*batches.values(), strict=True):
        assert torch.equal(one.index, two.index)
        assert torch.equal(one.target, two.target)
        for m in ("audio", "video"):
            assert torch.equal(one.inputs[m], two.inputs[m])
            torch.testing.assert_close(one.inputs[m].cpu(), three.inputs[m], rtol=1e-3, atol=1e-3)


def test_a_batch_stays_whole_until_its_step_has_run():
    """The next one is made meanwhile, on another stream and where memory was let go."""
    made = loader.Loader(clips(160), torch.device("cuda"), 16, 0)
    expected = [batch.inputs["video"].sum() for batch in list(made.train(0, ["audio", "video"]))]
    with torch.cuda.stream(torch.cuda.Stream()):
        found = []
        for batch in made.train(0, ["audio", "video"]):
            torch.cuda._sleep(20_000_000)  # some ten milliseconds
            found.append(batch.inputs["video"].sum())
            del batch
    torch.cuda.synchronize()
    assert torch.equal(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_augmented_clips_train_without_a_wait(precision):
    run_without_waits(make_trainer(clips(), "joint", device="cuda", epochs=1, batch_size=16, precision=precision))


def test_joint_throughput():
    bundle = tiny_bundle(2, kind="image", n=(4096, 32, 32))
    for _ in range(2):  # the first loads kernels
        trainer = make_trainer(bundle, "joint", device="cuda", epochs=3, batch_size=256)
        cost = trainer.run()["cost"]["phases"]
    # samples a second; a wait for the device at every sample would not get there
    assert 3 * 4096 / sum(phase["seconds"] for phase in cost) > 5_000
