"""On a CUDA device: the same numbers as on the CPU, no wait for the device inside a step, resume to the same bytes."""

import time

import pytest
import torch

import registry
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


@pytest.mark.parametrize("name", METHODS)
def test_no_wait_for_the_device_inside_a_step(name):
    trainer = make_trainer(tiny_bundle(2, kind="image"), name, device="cuda", epochs=1)
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
def test_same_seed_same_bytes_on_the_gpu(name):
    bundle = tiny_bundle(2, kind="image")
    torch.backends.cudnn.deterministic = True
    assert (
        make_trainer(bundle, name, device="cuda").run()["result"]
        == (make_trainer(bundle, name, device="cuda").run()["result"])
    )


def test_joint_throughput():
    bundle = tiny_bundle(2, kind="image", n=(4096, 32, 32))
    trainer = make_trainer(bundle, "joint", device="cuda", epochs=3, batch_size=256)
    started = time.perf_counter()
    trainer.run()
    assert (
        3 * 4096 / (time.perf_counter() - started) > 5_000
    )  # samples a second; a host sync a sample would not get there
