"""The multimodal model: one encoder a modality and a fusion, nothing shared between modalities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from balancebench_udi.nets.encoders import Encoder, build_encoder, initialise
from balancebench_udi.nets.fusion import check_fusion
from balancebench_udi.seeding import derive


class Passes:
    """Counts how many samples went through each encoder, forward and backward. Plain integers, no device work."""

    def __init__(self, modalities: list[str]) -> None:
        self.forward = dict.fromkeys(modalities, 0)
        self.backward = dict.fromkeys(modalities, 0)
        self.counting = True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Passes inside are not counted: they evaluate, they do not train."""
        before, self.counting = self.counting, False
        try:
            yield
        finally:
            self.counting = before

    def count(self, m: str, features: Tensor) -> None:
        """Count one forward pass that produced ``features``, and every backward pass that reaches them."""
        if not self.counting:
            return
        samples = len(features)
        self.forward[m] += samples

        def passed(_: Tensor) -> None:
            self.backward[m] += samples

        if features.requires_grad:
            features.register_hook(passed)


class MultimodalModel(nn.Module):
    """``encode`` then ``fusion``.

    Args:
        encoders: name -> encoder, in the order of fusion.
        fusion: name of the fusion.
        classes: number of classes.
        seed: the run's seed; every part starts from its own stream of it.
        autocast: reduced precision inside the encoders, or None; features are always float32.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        fusion: str,
        classes: int,
        seed: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders))
        self.passes = Passes(list(encoders))
        self.classes = classes
        self.autocast = autocast
        with seeded(seed, "fusion"):
            self.fusion = check_fusion(fusion, len(encoders))(self.feature_sizes, classes)
            initialise(self.fusion)

    @property
    def modalities(self) -> list[str]:
        return list(self.encoders)

    @property
    def feature_sizes(self) -> dict[str, int]:
        """``{m: D_m}``."""
        return {m: int(encoder.features) for m, encoder in self.encoders.items()}  # type: ignore[arg-type]

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features ``{m: [B, D_m]}`` in float32 of the modalities given, in the order of fusion."""
        features = {}
        for m, encoder in self.encoders.items():
            if m not in inputs:
                continue
            x = inputs[m]
            if self.autocast is None:
                features[m] = encoder(x)
            else:
                with torch.autocast(x.device.type, self.autocast):
                    features[m] = encoder(x)
                features[m] = features[m].float()
            self.passes.count(m, features[m])
        return features


def build_model(
    encoders: Mapping[str, dict[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
    fusion: str,
    classes: int,
    seed: int,
    autocast: torch.dtype | None = None,
) -> MultimodalModel:
    """A model whose encoders start the same in every method of one seed."""
    built = {}
    for m, description in encoders.items():
        with seeded(seed, "encoder", m):
            built[m] = build_encoder(description, shapes[m])
    return MultimodalModel(built, fusion, classes, seed, autocast)


class seeded:
    """Context: torch's global CPU generator stands at the start of a named stream, and is put back afterwards."""

    def __init__(self, seed: int, *labels: object) -> None:
        self.seed = derive(seed, *labels)

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.random.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)
