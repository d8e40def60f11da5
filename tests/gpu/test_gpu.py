"""On a CUDA device: the same numbers as on the CPU, no wait for the device inside a step, resume to the same bytes."""

import time

import pytest
import torch

import registry
from balancebench_udi.data import loader
from balancebench_udi.data.base import Bundle, Modality, Split
from balancebench_udi.data.frames import FrameTransform
from tests.helpers import make_trainer, tiny_bundle

pytestmark = pytest.mark.gpu
METHODS = list(registry.METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_cpu_and_gpu_agree(name):
    bundle = tiny_bundle(2, kind="image", dtype=torch.float64)
    options = {"noise": False} if name == "ogm_ge" else None  # its noise comes from the device's own generator
    runs = [make_trainer(bundle, name, options, device=device, epochs=2).run() for device in ("cpu", "cuda")]
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


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_bytes_on_the_gpu(name):
    bundle = tiny_bundle(2, kind="image")
    torch.backends.cudnn.deterministic = True
    assert (
        make_trainer(bundle, name, device="cuda").run()["result"]
        == (make_trainer(bundle, name, device="cuda").run()["result"])
    )


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_augmented_clips_train_without_a_wait(precision):
    run_without_waits(make_trainer(clips(), "joint", device="cuda", epochs=1, batch_size=16, precision=precision))


def test_joint_throughput():
    bundle = tiny_bundle(2, kind="image", n=(4096, 32, 32))
    trainer = make_trainer(bundle, "joint", device="cuda", epochs=3, batch_size=256)
    started = time.perf_counter()
    trainer.run()
    assert (
        3 * 4096 / (time.perf_counter() - started) > 5_000
    )  # samples a second; a host sync a sample would not get there
