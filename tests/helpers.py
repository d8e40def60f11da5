"""Tiny data, run specifications and trainers for tests; everything follows from its arguments.

A bundle of ``dtype`` float64 makes a float64 trainer, so that an oracle can be compared tightly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import registry
from balancebench_udi.config import Options
from balancebench_udi.data.base import Bundle, Modality, Split
from balancebench_udi.seeding import generator
from balancebench_udi.spec import Optimizer, RunSpec, Schedule
from balancebench_udi.store import Store
from balancebench_udi.strategy import Batch, Strategy
from balancebench_udi.trainer import Trainer

NAMES = ("audio", "visual", "text")
VECTORS = {"audio": (12,), "visual": (10,), "text": (9,)}
IMAGES = {"audio": (1, 8, 8), "visual": (3, 8, 8), "text": (2, 8, 8)}
STRENGTH = {"audio": 2.0, "visual": 1.2, "text": 0.8}


def tiny_bundle(
    modalities: int = 2,
    kind: str = "vector",
    seed: int = 0,
    n: tuple[int, int, int] = (96, 32, 40),
    classes: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Gaussian classes, ``audio`` easier than ``visual`` easier than ``text``.

    Args:
        modalities: how many, 1 to 3.
        kind: ``vector`` (``[12]``, ``[10]``, ``[9]``) or ``image`` (``[1|3|2, 8, 8]``).
        seed: of everything.
        n: samples in train, val and test.
        classes: number of classes.
        dtype: of the inputs.
    """
    names = NAMES[:modalities]
    shapes = {m: (VECTORS if kind == "vector" else IMAGES)[m] for m in names}
    means = {m: torch.randn(classes, *shapes[m], generator=generator(seed, "means", m)) for m in names}

    def split(part: str, count: int) -> Split:
        target = torch.arange(count) % classes
        target = target[torch.randperm(count, generator=generator(seed, part, "target"))]
        inputs = {}
        for m in names:
            noise = torch.randn(count, *shapes[m], generator=generator(seed, part, m))
            inputs[m] = (STRENGTH[m] * means[m][target] + noise).to(dtype)
        return Split(inputs, target)

    encoder, what = ("mlp", "vector") if kind == "vector" else ("digit", "digit")
    return Bundle(
        {m: Modality(what, shapes[m], encoder, AsStored()) for m in names},
        tuple(f"class{c}" for c in range(classes)),
        *(split(part, count) for part, count in zip(("train", "val", "test"), n, strict=True)),
        fingerprint=hashlib.sha256(repr((modalities, kind, seed, n, classes, dtype)).encode()).hexdigest()[:12],
    )


def written_spec(**changes: Any) -> dict[str, Any]:
    """The specification of a made-up run, as a record holds it; ``changes`` replace entries."""
    encoders = {"audio": {"name": "mlp"}, "visual": {"name": "mlp"}}
    data = {"dataset": "toy", "dataset_version": 1, "dataset_options": {}, "fingerprint": "0123456789ab"}
    training = {"optimizer": {"name": "sgd", "lr": 0.1}, "schedule": {"name": "constant"}, "epochs": 4}
    return {
        **{"protocol": "quick", "protocol_version": 1, **data, "method_version": 1, "method_options": {}},
        **{"encoders": encoders, "fusion": "concat", **training, "batch_size": 32},
        **{"precision": "fp32", "test_each_epoch": False, **changes},
    }


class AsStored:
    """The transform that leaves the values and their type alone."""

    draws = 0

    def __call__(self, stored: Tensor, draws: Tensor | None = None) -> Tensor:
        return stored


def make_spec(
    bundle: Bundle, method_name: str, options: Options | Mapping[str, Any] | None = None, **overrides: Any
) -> RunSpec:
    """A short run: SGD at 0.05, 4 epochs of batches of 32, MLPs of width 16 (or the digit network).

    Args:
        options: the method's options; a mapping or None is completed by the method's defaults.
        overrides: fields of :class:`RunSpec`; ``optimizer`` and ``schedule`` may hold only what differs.
    """
    cls = registry.methods.get(method_name)
    if not isinstance(options, Options):
        options = cls.Options.build(method_name, options or {})
    return _spec(bundle, cls, method_name, options, overrides)


def make_trainer(
    bundle: Bundle,
    method: type[Strategy] | str,
    options: Options | Mapping[str, Any] | None = None,
    store: Store | Path | None = None,
    *,
    checkpoint_every: float = 0.0,
    tick: Callable[[str, int], None] = lambda phase, steps: None,
    device: str | torch.device = "cpu",
    **overrides: Any,
) -> Trainer:
    """A trainer of ``method`` (a class or a registered name), in the dtype of the bundle's inputs."""
    cls = registry.methods.get(method) if isinstance(method, str) else method
    if not isinstance(options, Options):
        options = cls.Options.build(cls.name, options or {})
    if isinstance(store, Path):
        store = Store(store)
    spec = _spec(bundle, cls, cls.name, options, overrides)
    trainer = Trainer(spec, bundle, cls, options, torch.device(device), store, checkpoint_every, tick)
    if next(iter(bundle.train.inputs.values())).dtype == torch.float64:
        trainer.strategy.double()
    return trainer


def train(
    bundle: Bundle,
    method: type[Strategy] | str,
    options: Options | Mapping[str, Any] | None = None,
    store: Store | Path | None = None,
    **overrides: Any,
) -> tuple[dict[str, Any], Strategy]:
    """(``result`` of a whole run, its strategy); takes what :func:`make_trainer` takes."""
    trainer = make_trainer(bundle, method, options, store, **overrides)
    return trainer.run()["result"], trainer.strategy


class Enough(KeyboardInterrupt):
    """Ends a run from inside, as Ctrl-C would."""


class Waits(TorchDispatchMode):
    """Notes the operations that would wait for a GPU: values that Python asks for, shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "aten.equal.", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = args[1] if str(func).startswith("aten.index") and isinstance(args[1], list | tuple) else ()
        if any(name in str(func) for name in self.NAMES) or any(x is not None and x.dtype == torch.bool for x in masks):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def run_steps(
    trainer: Trainer, count: int, after: Callable[[Batch, dict[str, Tensor]], None] = lambda batch, logs: None
) -> list[Batch]:
    """The first ``count`` calls of ``strategy.step`` that ``trainer.run()`` makes, and the batches they got.

    Args:
        after: called with the batch and the logs after every step.
    """
    batches: list[Batch] = []
    original = trainer.strategy.step

    def step(batch: Batch) -> dict[str, Tensor]:
        if len(batches) == count:
            raise Enough
        logs = original(batch)
        batches.append(batch)
        after(batch, logs)
        return logs

    trainer.strategy.step = step  # type: ignore[method-assign]
    try:
        trainer.run()
    except Enough:
        pass
    finally:
        del trainer.strategy.step  # type: ignore[attr-defined]
    assert len(batches) == count, f"the run had only {len(batches)} steps"
    return batches


def stop_and_resume(
    reports: int,
    bundle: Bundle,
    method: type[Strategy] | str,
    options: Options | Mapping[str, Any] | None,
    store: Path,
    **overrides: Any,
) -> tuple[dict[str, Any], Trainer, list[str]]:
    """A run that a Ctrl-C ends at its ``reports``-th report of progress, and a second trainer that finishes it.

    Returns:
        ``result``, the second trainer, and what its own reports of progress said.
    """
    before: list[str] = []
    after: list[str] = []

    def stop(phase: str, steps: int) -> None:
        before.append(phase)
        if len(before) == reports:
            raise Enough

    with pytest.raises(Enough):
        make_trainer(bundle, method, options, store, tick=stop, **overrides).run()
    again = make_trainer(bundle, method, options, store, tick=lambda phase, steps: after.append(phase), **overrides)
    return again.run()["result"], again, after


def state_digest(module: nn.Module) -> str:
    """SHA-256 over every parameter and buffer: name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            values = value.detach().cpu().contiguous()
            digest.update(f"{values.dtype}{tuple(values.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _spec(bundle: Bundle, cls: type[Strategy], name: str, options: Options, overrides: Mapping[str, Any]) -> RunSpec:
    mlp = {"name": "mlp", "width": 16, "depth": 2}
    values: dict[str, Any] = {
        "protocol": "test",
        "protocol_version": 1,
        "dataset": "tiny",
        "dataset_version": 1,
        "dataset_options": {},
        "fingerprint": bundle.fingerprint,
        "method": name,
        "method_version": cls.version,
        "method_options": options.as_dict(),
        "encoders": {m: dict(mlp) if x.encoder == "mlp" else {"name": x.encoder} for m, x in bundle.modalities.items()},
        "fusion": "concat",
        "epochs": 4,
        "batch_size": 32,
        "precision": "fp32",
        "seed": 0,
        **overrides,
    }
    values["optimizer"] = Optimizer(**{"lr": 0.05, **overrides.get("optimizer", {})}).as_dict()
    values["schedule"] = Schedule(**overrides.get("schedule", {})).as_dict()
    return RunSpec(**values)
