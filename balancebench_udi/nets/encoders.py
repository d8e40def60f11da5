"""Encoders: from one modality's float batch to a feature vector ``[B, D]``.

All start from the same scheme (:func:`initialise`), so that methods differ in their training rule only.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from balancebench_udi.config import Options, option
from balancebench_udi.errors import UserError, near_misses


def initialise(module: nn.Module) -> None:
    """The OGM-GE scheme: Linear Xavier normal, Conv Kaiming normal (fan_out, relu), norms 1, biases 0.

    Embeddings, which it lacks, are standard normal: tokens enter with the variance of any normalised input.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
        elif isinstance(part, nn.Conv2d | nn.Conv1d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm) and part.weight is not None:
            nn.init.ones_(part.weight)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight)
            continue
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


class Encoder(nn.Module):
    """Base: ``forward(x [B, ...]) -> [B, features]``."""

    features: int

    def last_block(self) -> nn.Module:
        """The last child that holds parameters; inside it where it is the only such child. Override it where wrong."""
        block: nn.Module = self
        while children := [c for c in block.children() if next(c.parameters(), None) is not None]:
            block = children[-1]
            if len(children) > 1:
                break
        return block


def _channels_last(x: Tensor) -> Tensor:
    """The memory layout in which 2-D convolutions are fastest, on CPU and GPU; the same values."""
    return x.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class ResNet18Options(Options):
    """How :class:`ResNet18` begins."""

    weights: str | None = option(
        None,
        "file of a resnet18 state dict of torchvision's to begin with, such as ImageNet's; none: from scratch",
        source="ours; OGM-GE, PMR and AGM code begin from scratch, MMPareto's on UCF101 with ImageNet's",
    )


class ResNet18(Encoder):
    """ResNet-18 without its classifier, pooled after the backbone (Peng et al., CVPR 2022, official code).

    ``[B, C, H, W]`` is averaged over space; ``[B, C, T, H, W]`` is encoded frame by frame and averaged over space and
    time. The first convolution takes the modality's channels: 1 for a spectrogram, 3 for frames, 2 for optical flow.
    """

    features = 512

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        from balancebench_udi.nets.resnet import Backbone  # here: it doubles the time a process needs to start

        self.net = Backbone(shape[0])

    def begin_with(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of a trained network, except for the classifier.

        A first convolution of other channels stays as it is (as MMPareto's code has it for optical flow).
        """
        taken = {name: value for name, value in state.items() if not name.startswith("fc.")}
        if taken["conv1.weight"].shape != self.net.conv1.weight.shape:
            del taken["conv1.weight"]
        self.net.load_state_dict(taken, strict=False)

    def last_block(self) -> nn.Module:
        """The last of the four stages of residual blocks."""
        return self.net.layer4

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return self.net(_channels_last(x))
        batch, _, frames = x.shape[:3]
        x = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)  # channels_last by a single copy
        return self.net(x).view(batch, frames, -1).mean(1)


class DigitNet(Encoder):
    """The four-convolution network of PMR's coloured-and-gray MNIST (Fan et al., CVPR 2023, official code).

    ``[B, C, H, W] -> [B, 512]``. Its 7x7 average over the last map is a global average here: the same at 28x28, and it
    lets other image sizes in. Pooling comes before the first ReLU: the same values and gradients, bit by bit, of a
    quarter of the work.
    """

    features = 512

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(shape[0]),
            nn.Conv2d(shape[0], 32, 5, padding=2),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.out = nn.Linear(64, self.features)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(_channels_last(x)).mean((2, 3)))


@dataclass(frozen=True)
class MLPOptions(Options):
    """Size of :class:`MLP`."""

    width: int = option(128, "width of the hidden and of the feature layer", source="ours", at_least=1)
    depth: int = option(2, "number of linear layers", source="ours", at_least=1, at_most=1000)


class MLP(Encoder):
    """Feature vectors ``[B, D]`` (or anything flat) through ``depth`` linear layers with ReLU after each."""

    def __init__(self, shape: tuple[int, ...], width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = shape.numel() if isinstance(shape, torch.Size) else int(torch.Size(shape).numel())
        for _ in range(depth):
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        self.body = nn.Sequential(*layers)
        self.features = width

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1))


@dataclass(frozen=True)
class TemporalOptions(Options):
    """Size of :class:`Temporal`."""

    width: int = option(128, "number of channels", source="ours", at_least=1)


class Temporal(Encoder):
    """Sequences ``[B, T, D]`` through three dilated temporal convolutions with batch norm, averaged over time."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = shape[1]
        for dilation in (1, 2, 4):
            layers += [
                nn.Conv1d(size, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            ]
            size = width
        self.body = nn.Sequential(*layers)
        self.features = width

    def last_block(self) -> nn.Module:
        """The last convolution with its batch norm."""
        return self.body[-3:]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.transpose(1, 2)).mean(2)


@dataclass(frozen=True)
class TokensOptions(Options):
    """Size of :class:`Tokens`."""

    width: int = option(128, "width of the embedding and of the feature", source="ours", at_least=1)
    vocabulary: int = option(
        16384, "number of token ids with the padding, as the dataset's", source="ours", at_least=2, at_most=2**24
    )
    depth: int = option(2, "number of convolutions; 0 for a bag of words", source="ours", at_least=0, at_most=8)


class _TokenBlock(nn.Module):
    """What :class:`Tokens` adds to ``[B, L, width]``: convolution over L, norm of each position, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2)))


class Tokens(Encoder):
    """Token ids ``[B, L]``, 0 for padding, embedded, through ``depth`` residual convolutions, averaged over the tokens.

    Each convolution sees three neighbouring positions and is followed by layer norm, which keeps tokens apart, and
    ReLU. Position matters through neighbours alone; with depth 0 the order of the words does not matter at all.

    Padding is 0 before every convolution and left out of the average: any number of zeros behind the tokens changes
    nothing. A sample of padding only has the feature 0. Ids arrive as floats, exact below 2**24; those of a larger
    vocabulary are folded onto this one, as if they had been hashed to fewer.
    """

    def __init__(self, shape: tuple[int, ...], width: int, vocabulary: int, depth: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_TokenBlock(width) for _ in range(depth))
        self.features = width

    def last_block(self) -> nn.Module:
        """The last convolution with its norm, else the embedding."""
        return self.blocks[-1] if len(self.blocks) else self.embedding

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long()
        mask = (ids > 0).unsqueeze(2)
        hidden = self.embedding((ids - 1) % (self.vocabulary - 1) + 1) * mask  # [B, L, width]
        for block in self.blocks:
            hidden = hidden + block(hidden) * mask
        return hidden.sum(1) / mask.sum(1).clamp(min=1)


@dataclass(frozen=True)
class _Entry:
    make: Callable[..., Encoder]
    kinds: tuple[str, ...]
    options: type[Options] = Options


_IMAGES = ("digit", "spectrogram", "frames", "flow")
ENCODERS: dict[str, _Entry] = {
    "resnet18": _Entry(ResNet18, _IMAGES, ResNet18Options),
    "digit": _Entry(DigitNet, ("digit", "spectrogram")),
    "mlp": _Entry(MLP, ("vector", *_IMAGES, "sequence"), MLPOptions),
    "temporal": _Entry(Temporal, ("sequence",), TemporalOptions),
    "tokens": _Entry(Tokens, ("tokens",), TokensOptions),
}


_MOST_BYTES = 2**30
"""Of a file of weights: torchvision's take 47 MB."""
_CLASSIFIER = ("fc.weight", "fc.bias")
"""What a file may hold beyond an encoder."""
_weights: dict[str, Path] = {}
"""Content of a file of weights -> where this process was told of it."""


def encoder_options(name: str, kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The complete description ``{"name": ..., options}`` of an encoder, as a RunSpec holds it.

    A file of weights stands there by its content, ``sha256:...``, and not at all where there is none.

    Raises:
        UserError: unknown encoder, one that cannot read a modality of this kind, a bad option, a file that does not
            hold what the encoder can begin with.
    """
    if name not in ENCODERS:
        raise UserError(f"there is no encoder called {name!r}{near_misses(name, ENCODERS)}")
    entry = ENCODERS[name]
    if kind not in entry.kinds:
        raise UserError(f"encoder {name} reads {', '.join(entry.kinds)}; the modality is a {kind}: choose another")
    described = {"name": name, **entry.options.build(f"encoder {name}", values).as_dict()}
    weights = described.pop("weights", None)
    if weights is not None:
        described["weights"] = weights if weights in _weights else _note_weights(Path(weights))
    return described


def build_encoder(description: dict[str, Any], shape: tuple[int, ...]) -> Encoder:
    """An initialised encoder from its description; draws from torch's global generator.

    Raises:
        UserError: weights that :func:`encoder_options` was never given the file of.
    """
    options = {k: v for k, v in description.items() if k not in ("name", "weights")}
    encoder = ENCODERS[description["name"]].make(tuple(shape), **options)
    initialise(encoder)
    if (weights := description.get("weights")) is not None:
        if weights not in _weights:
            raise UserError(
                f"this run begins with the weights {weights}: name their file again, --set encoder.MODALITY.weights"
            )
        state, content = read_weights(_weights[weights])
        if content != weights:
            raise UserError(f"{_weights[weights]} must stay as it was, {weights}, found {content}: start the run again")
        encoder.begin_with(state)  # type: ignore[operator]
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _note_weights(path: Path) -> str:
    _, content = read_weights(path)
    _weights[content] = path.resolve()
    return content


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The state dict of a ResNet-18, and the file's content as ``sha256:...``.

    Raises:
        UserError: no such file, or another content: nothing in it is executed.
    """
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise UserError(f"weights must be a file of at most {_MOST_BYTES} bytes, found {size} in {path}")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"weights must be a file that can be read, found {path}: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another content
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = {name: value.shape for name, value in state.items()}
    except Exception:  # torch raises many kinds for other content, and every one means the same here
        raise UserError(
            f"weights must be a state dict that torch.save wrote, found another content in {path}"
        ) from None
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in ResNet18((3,)).net.state_dict().items()}
    if len(first := found.get("conv1.weight", ())) == 4:
        wanted["conv1.weight"] = torch.Size((64, first[1], 7, 7))  # of any channels
    for name, shape in wanted.items():
        if name.endswith("num_batches_tracked"):
            continue
        if found.get(name) != shape:
            raise UserError(
                f"weights must be those of torchvision's resnet18, {name} of shape {tuple(shape)}, found "
                f"{'none' if found.get(name) is None else tuple(found[name])} in {path}"
            )
        if not (state[name].is_floating_point() and state[name].isfinite().all()):
            raise UserError(f"weights must be finite numbers, found others in {name} of {path}; use another file")
    if others := [str(name) for name in found if name not in wanted and name not in _CLASSIFIER]:
        raise UserError(f"weights must be those of torchvision's resnet18, found {others[0]} in {path}, which it lacks")
    return {n: v for n, v in state.items() if n in wanted}, f"sha256:{hashlib.sha256(data).hexdigest()}"
