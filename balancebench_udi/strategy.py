"""The interface of a method: :class:`Strategy`, and the services it gets: :class:`Task`.

A method is one class in one file. It may override any of the hooks below; everything it keeps (heads, teachers,
prototypes, running averages) is a submodule or a buffer and is checkpointed for free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from balancebench_udi.config import Options as AnyOptions
from balancebench_udi.data.loader import Batch, Loader, View
from balancebench_udi.errors import UserError
from balancebench_udi.nets.encoders import Encoder, build_encoder, initialise
from balancebench_udi.nets.model import MultimodalModel, seeded
from balancebench_udi.seeding import generator
from balancebench_udi.spec import Optimizer, RunSpec

__all__ = ["Batch", "Output", "Phase", "Strategy", "Task", "View", "evaluating"]


@dataclass(frozen=True)
class Output:
    """``logits [B, C]``, ``features {m: [B, D_m]}``, ``unimodal {m: [B, C]}`` of the method's own heads (or empty)."""

    logits: Tensor
    features: Mapping[str, Tensor]
    unimodal: Mapping[str, Tensor]


def _everything(name: str) -> bool:
    return True


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own optimiser and learning-rate schedule.

    Attributes:
        name: appears in the curves.
        epochs: how long.
        trainable: asked for every name in ``strategy.state_dict()`` (``model.encoders.audio...``, ``heads.audio...``).
            What it denies is frozen: no gradient, eval mode, not in the optimiser. Names below ``aux_*`` belong to the
            method, which optimises them itself.
        modalities: the inputs that training batches hold; None for all.
        monitor: the inputs that ``predict`` gets on the validation split; None for ``modalities``. Its accuracy picks
            the best epoch.
        keep: the weights on which the next phase stands: of the ``last`` epoch or of the epoch ``best_val``.
        shared: label of a phase that other methods train identically; such a phase is trained once and reused. It must
            depend on nothing but the run's specification and this label, and move only what ``trainable`` grants.
        patience: after so many epochs in a row without a better validation accuracy the phase ends early; None: never.
            The learning rate follows the planned ``epochs`` all the same.
    """

    name: str
    epochs: int
    trainable: Callable[[str], bool] = _everything
    modalities: tuple[str, ...] | None = None
    monitor: tuple[str, ...] | None = None
    keep: str = "last"
    shared: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in ("last", "best_val"):
            raise UserError(f"phase {self.name} must keep last or best_val, found {self.keep!r}")
        if self.epochs < 1:
            raise UserError(f"phase {self.name} must last at least 1 epoch, found {self.epochs}")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"phase {self.name} must have a patience of at least 1 epoch, found {self.patience}")


class Task:
    """What a method may ask the trainer for. It has no way to reach the test split.

    Attributes:
        model: the :class:`MultimodalModel`.
        classes: number of classes C.
        epochs: epochs of a phase, from the run's specification.
        device: where tensors live.
        generator: the method's own random stream, on the device; nobody else draws from it.
        optimizer: of the current phase.
        phase: the current phase.
        epoch: 0-based, within the phase.
    """

    def __init__(self, spec: RunSpec, model: MultimodalModel, loader: Loader, shapes: Mapping[str, tuple[int, ...]]):
        self.model = model
        self.classes = model.classes
        self.epochs = spec.epochs
        self.device = loader.device
        self.generator = generator(spec.seed, "strategy", device=loader.device)
        self.optimizer: torch.optim.Optimizer
        self.phase: Phase
        self.epoch = 0
        self._spec = spec
        self._loader = loader.without_test()
        self._shapes = shapes
        self._module: nn.Module = model

    @property
    def modalities(self) -> list[str]:
        """Names of all modalities, in the order of fusion."""
        return self.model.modalities

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch of the base train split."""
        return self._loader.steps()

    def within(self, window: tuple[float, float], epoch: int | None = None) -> bool:
        """Whether epoch e (from 0; default: the current one) of the run's E has ``window[0] <= e / E <= window[1]``.

        Both edges are in, as in the official windows: (0, 0.5) of 100 epochs is 0 to 50; (1, 1) is never.
        """
        progress = (self.epoch if epoch is None else epoch) / self.epochs
        return window[0] - 1e-9 <= progress <= window[1] + 1e-9

    def make_optimizer(self, parameters: Iterable[nn.Parameter], **overrides: Any) -> torch.optim.Optimizer:
        """The run's optimiser over ``parameters``; ``overrides`` replace fields of :class:`~spec.Optimizer`."""
        return make_optimizer(Optimizer(**{**self._spec.optimizer, **overrides}), parameters)

    def make_encoder(self, m: str, *stream: object) -> Encoder:
        """A new encoder for modality m, started from the stream ``stream`` (default: as the model's own)."""
        with seeded(self._spec.seed, *(stream or ("encoder", m))):
            return build_encoder(dict(self._spec.encoders[m]), self._shapes[m]).to(self.device)

    def make_head(self, m: str, *stream: object) -> nn.Linear:
        """A linear classifier ``D_m -> C`` for modality m, started from ``stream`` (default: same in all methods)."""
        with seeded(self._spec.seed, *(stream or ("head", m))):
            head = nn.Linear(self.model.feature_sizes[m], self.classes)
            initialise(head)
        return head.to(self.device)

    def make_heads(self) -> nn.ModuleDict:
        """One :meth:`make_head` a modality."""
        return nn.ModuleDict({m: self.make_head(m) for m in self.modalities})

    def augmented(self, m: str) -> bool:
        """Whether training batches of modality m are augmented: they then differ from epoch to epoch."""
        return self._loader.bundle.modalities[m].transform.draws > 0

    def target(self, split: str) -> Tensor:
        """``[N]`` labels of ``train`` or ``val``, on the device."""
        return self._loader.target(self._open(split))

    def collect(
        self,
        fn: Callable[[Batch], Any],
        split: str,
        index: Tensor | None = None,
        modalities: Sequence[str] | None = None,
    ) -> Any:
        """Run ``fn`` over ``train`` or ``val`` in order: eval mode, no gradient, no augmentation, nothing dropped.

        Args:
            fn: from a batch to a tensor ``[B, ...]`` or a dict of such tensors.
            split: ``train`` or ``val``.
            index: rows of the split, or None for all.
            modalities: the inputs to load, or None for all.

        Returns:
            The tensors, concatenated over the split.
        """
        names = self.modalities if modalities is None else modalities
        with evaluating(self._module):
            parts = [fn(batch) for batch in self._loader.ordered(self._open(split), names, index)]
        if isinstance(parts[0], Mapping):
            return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        return torch.cat(parts)

    def first_batch(self) -> Batch:
        """The first batch of the current epoch over the base split, as the epoch sees it without a ``sample_view``."""
        return next(self._loader.train(self.epoch, self.phase.modalities or self.modalities))

    def last_batch(self, epoch: int) -> Batch:
        """The last batch of ``epoch`` over the base split, a function of seed and epoch, with the phase's inputs."""
        return self._loader.last(epoch, self.phase.modalities or self.modalities)

    @staticmethod
    def _open(split: str) -> str:
        if split not in ("train", "val"):
            raise UserError(f"a method may read the splits train and val, found {split!r}")
        return split


class Strategy(nn.Module):
    """Base of every method, and by itself the joint baseline.

    Subclasses set the class facts, an ``Options`` dataclass, and override the hooks they need.

    Attributes:
        name: as on the command line.
        idea: what it does, in at most two sentences, for readers of a report.
        version: raised when the method's numbers change; part of every run's key.
        family: none, data, forward, objective, optimization or strategy.
        reference: authors, venue, link.
        independent_phases: whether no phase rests on an earlier one, so that each is read at its own epoch; else only
            the last phase is, and earlier ones stand as they were handed over.
        min_modalities, max_modalities: how many it can work with (None: no upper limit).
    """

    name: ClassVar[str]
    idea: ClassVar[str] = ""
    version: ClassVar[int] = 1
    family: ClassVar[str] = "none"
    reference: ClassVar[str] = ""
    independent_phases: ClassVar[bool] = False
    min_modalities: ClassVar[int] = 1
    max_modalities: ClassVar[int | None] = None
    Options: ClassVar[type[AnyOptions]] = AnyOptions

    def __init__(self, options: AnyOptions | None = None) -> None:
        super().__init__()
        self.options: Any = options if options is not None else self.Options()
        self.task: Task
        self.model: MultimodalModel

    @classmethod
    def check(cls, options: Any, modalities: Sequence[str], additive: bool) -> None:
        """Refuse what cannot work, before any training starts. Extend it for a method's own limits.

        Args:
            options: the method's options.
            modalities: names, in the order of fusion.
            additive: whether the fusion splits its logits exactly into shares.

        Raises:
            UserError: with what to do instead.
        """
        count = len(modalities)
        if count < cls.min_modalities:
            raise UserError(f"{cls.name} needs at least {cls.min_modalities} modalities, found {count}")
        if cls.max_modalities is not None and count > cls.max_modalities:
            raise UserError(
                f"{cls.name} takes at most {cls.max_modalities} modalities, found {count} "
                f"({', '.join(modalities)}): choose another method or dataset"
            )

    # -- the schedule ------------------------------------------------------------------------------------------------

    def setup(self, task: Task) -> None:
        """Once, after the model is built and before any optimiser: add heads, buffers, auxiliary networks."""
        self.task = task
        self.model = task.model

    def phase(self, index: int) -> Phase | None:
        """Phase ``index``, or None after the last. A pure function of index and saved state."""
        return Phase("training", self.task.epochs) if index == 0 else None

    @classmethod
    def planned_epochs(cls, options: Any, epochs: int, modalities: Sequence[str]) -> int:
        """Epochs of all phases together, for progress bars and estimates; a phase with ``patience`` may take fewer."""
        return epochs

    def begin_phase(self) -> None:
        """After the phase's optimiser is made, before its first epoch; not called again on resume."""

    def end_phase(self) -> None:
        """After the phase's kept weights are in place, also where they were reused."""

    def begin_epoch(self) -> None:
        """Before the epoch's first batch is made."""

    def end_epoch(self) -> None:
        """After the last step, before validation."""

    def sample_view(self) -> View | None:
        """The epoch's training set as references into the base split; None for the split itself."""
        return None

    # -- one step ----------------------------------------------------------------------------------------------------

    def replay_key(self) -> Hashable | None:
        """What a step of this epoch depends on beside tensors that stay where they are; None: on more than that.

        On a GPU, where a key is given, a step is recorded and replayed without running any Python, as long as phase,
        learning rate and key stay the same. So give one only if everything that changes from step to step is a tensor,
        changed in place: ``()`` where nothing else matters, ``self.active`` where an epoch's window does. A subclass
        whose steps depend on more than its base's must say so, or return None.
        """
        return None

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update. Returns what to log: detached device scalars, means over the batch; ``loss`` among them."""
        self.task.optimizer.zero_grad(set_to_none=True)  # before the pass: the old gradients need not wait for its end
        output = self.forward(batch)
        loss, logs = self.loss(output, batch)
        loss.backward()
        self.after_backward(output, batch)
        self.task.optimizer.step()
        return {"loss": loss.detach(), "accuracy": accuracy(output.logits, batch.target), **logs}

    def forward(self, batch: Batch) -> Output:
        """The training pass: as :meth:`predict`, with hidden modalities' features at zero."""
        features = self.model.encode(batch.inputs)
        if batch.keep is not None:
            features = {m: f * batch.keep[m].unsqueeze(1) for m, f in features.items()}
        return Output(self.fuse(features), features, self.alone(features))

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (a scalar) and further values to log."""
        return F.cross_entropy(output.logits, batch.target), {}

    def after_backward(self, output: Output, batch: Batch) -> None:
        """Between backward and the optimiser's step: modulate gradients here."""

    # -- read-outs ---------------------------------------------------------------------------------------------------

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Fused logits ``[B, C]`` from features; evaluation calls it with features set to zero for ``masked``."""
        return self.model.fusion(features)

    def shares(self, features: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """``{m: [B, C]}`` summing exactly to :meth:`fuse`; None where there is no such split."""
        return self.model.fusion.shares(features)

    def alone(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``{m: [B, C]}`` from the method's own heads on one modality each; empty where it has none."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What the method found out and a reader should know (an anchor, final weights), JSON types."""
        return {}

    def predict(self, inputs: Mapping[str, Tensor]) -> Output:
        """What evaluation calls: a pure function of the inputs in eval mode."""
        features = self.model.encode(inputs)
        return Output(self.fuse(features), features, self.alone(features))


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of right argmaxes, a float32 scalar on the device."""
    return (logits.detach().argmax(1) == target).float().mean()


def make_optimizer(options: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """``options`` over ``parameters``, with the fused kernels of torch."""
    made: torch.optim.Optimizer
    if options.name == "adamw":
        made = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay, fused=True)
        recordable(made)
    else:
        momentum, decay = options.momentum, options.weight_decay
        made = torch.optim.SGD(parameters, lr=options.lr, momentum=momentum, weight_decay=decay, fused=True)
    made.register_step_pre_hook(_same_layout)
    return made


def recordable(optimizer: torch.optim.Optimizer) -> None:
    """Let the steps of an Adam with the fused kernels be recorded on a GPU; its arithmetic stays the same."""
    for group in optimizer.param_groups:
        group["capturable"] = all(p.is_cuda for p in group["params"])


def _same_layout(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give every gradient its parameter's memory layout.

    The fused kernels walk both in memory order and never check, while ``torch.autograd.grad`` (unlike ``backward``) may
    return another layout: a method that assigns such gradients would be updated wrongly without a word.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p).copy_(p.grad)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient inside, every module's own mode restored afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
