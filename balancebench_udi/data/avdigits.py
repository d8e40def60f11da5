"""AVDigits: MNIST images paired with recordings of the Free Spoken Digit Dataset, in the manner of AV-MNIST.

Both halves are real; the pairing is made here: an image and a recording of the same digit, drawn at random. Given the
digit the two are independent, so no interaction between the modalities exists beyond the label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torchaudio
from torch import Tensor

from balancebench_udi.config import Options, option
from balancebench_udi.data.archive import read_archive
from balancebench_udi.data.audio import read_wav
from balancebench_udi.data.base import (
    Affine,
    Bundle,
    Dataset,
    Modality,
    Split,
    fingerprint,
    require_root,
    stratified_holdout,
)
from balancebench_udi.data.groups import Groups
from balancebench_udi.data.mnist import NEEDS, read_mnist
from balancebench_udi.errors import UserError
from balancebench_udi.seeding import generator

RATE = 8000
"""Sampling rate of every recording, Hz."""
RECORDINGS = 3000
"""10 digits x 6 speakers x 50 recordings, release v1.0.10 and later."""
BINS = 32
"""Mel bands and time frames of the spectrogram."""
_CLONE = "free-spoken-digit-dataset"
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")


@dataclass(frozen=True)
class AVDigitsOptions(Options):
    """Options of :class:`AVDigits`."""

    pairs_per_recording: int = option(
        1, "images paired with each training recording; no image is used twice", source="ours", at_least=1
    )
    eval_pairs_per_recording: int = option(
        1, "images paired with each validation and test recording", source="ours", at_least=1
    )
    val_share: float = option(0.1, "share of the training recordings of each digit held out", source="ours", above=0)
    val_seed: int = option(0, "seed of the validation split", source="ours", at_least=0)
    pair_seed: int = option(0, "seed of the pairing", source="ours", at_least=0)


class AVDigits(Dataset):
    """Spoken and written digits, 10 classes: ``audio`` ``[1, 32, 32]`` and ``image`` ``[1, 28, 28]``.

    Splits: the official ones of both halves. Recordings 0-4 of each speaker and digit are test (300), 5-49 train
    (2700), of which a tenth, stratified by digit, is held out for validation *by recording*, so that train and
    validation share neither a recording nor an image. Test pairs use MNIST's test images only. All six speakers are in
    every split; test samples are grouped by speaker, so that no verdict counts one speaker's recordings as independent.

    Audio: 8 kHz, cut or zero-padded to 1 s (20 of the 3000 recordings are longer), log(mel power + 1e-5) with 32 bands,
    Hann window of 64 ms, hop of 32 ms (ours: small enough for a CPU), standardised by the training pairs' mean and
    standard deviation. Image: [0, 1] pixels, mean 0.1307, standard deviation 0.3081 (as PMR's CGMNIST).

    Reference: Z. Jackson et al., Free Spoken Digit Dataset, doi:10.5281/zenodo.1342401; Y. LeCun et al., Gradient-based
    learning applied to document recognition, Proc. IEEE 86(11), 1998. The idea of such pairs: AV-MNIST (Vielzeuf et
    al., CentralNet, 2018), whose noise and PCA reduction are not applied here.
    """

    name = "avdigits"
    reference = "MNIST (LeCun et al., 1998) paired with FSDD (Jackson et al., doi:10.5281/zenodo.1342401)"
    needs = (
        f"{NEEDS}, and the Free Spoken Digit Dataset's recordings "
        "(github.com/Jakobovski/free-spoken-digit-dataset) as fsdd/recordings/*.wav or fsdd/recordings.tar.gz"
    )
    Options = AVDigitsOptions

    def load(self, root: Path | None) -> Bundle:
        """Read both halves and pair them.

        Raises:
            UserError: absent, damaged or incomplete files; more pairs asked for than there are images.
        """
        root = require_root(self, root)
        o = self.options
        waves = _read_recordings(root / (_CLONE if (root / _CLONE).is_dir() else "fsdd"))
        mnist = read_mnist(root)
        names = sorted(waves)
        fields = [_fields(name) for name in names]
        digit = torch.tensor([f[0] for f in fields])
        official_train = torch.tensor([f[2] >= 5 for f in fields])

        train = torch.nonzero(official_train).flatten()
        kept, held = stratified_holdout(digit[train], o.val_share, o.val_seed)
        recordings = {"train": train[kept], "val": train[held], "test": torch.nonzero(~official_train).flatten()}

        # train and val draw from one shuffled stock of training images, so that they share none
        train_stock, test_stock = (_Stock(*mnist[s], generator(o.pair_seed, "pairs", s)) for s in ("train", "test"))
        spectrograms = log_mel(torch.stack([_one_second(waves[n], n) for n in names])).to(torch.float16)
        splits = {}
        for s, rows in recordings.items():
            pairs = o.pairs_per_recording if s == "train" else o.eval_pairs_per_recording
            rows = rows.repeat_interleave(pairs)
            images = (test_stock if s == "test" else train_stock).draw(digit[rows])
            splits[s] = Split({"audio": spectrograms[rows], "image": images.unsqueeze(1)}, digit[rows])

        speakers = [fields[row][1] for row in recordings["test"].tolist() for _ in range(o.eval_pairs_per_recording)]
        values = splits["train"].inputs["audio"].to(torch.float64)
        audio = Affine.normalise((float(values.mean()),), (float(values.std()),), peak=1.0)
        return Bundle(
            modalities={
                "audio": Modality("spectrogram", (1, BINS, BINS), "digit", audio),
                "image": Modality("digit", (1, 28, 28), "digit", Affine.normalise((0.1307,), (0.3081,))),
            },
            classes=tuple(str(d) for d in range(10)),
            fingerprint=fingerprint(
                {"dataset": self.name, "version": self.version, "options": o.as_dict(), "recordings": names},
                *(waves[n] for n in names),
                *mnist["train"],
                *mnist["test"],
            ),
            facts={
                "generated": False,
                "pairing": "random within a digit",
                "recordings": {s: len(rows) for s, rows in recordings.items()},
                "pairs": {s: len(split) for s, split in splits.items()},
            },
            groups=Groups.of("speaker", speakers),
            **splits,
        )


def log_mel(samples: Tensor) -> Tensor:
    """``log(mel power + 1e-5)`` of 8 kHz sound.

    Args:
        samples: float ``[N, 8000]``.

    Returns:
        float32 ``[N, 1, 32, 32]``: bands from low to high, frames of 64 ms every 32 ms.
    """
    mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=512, hop_length=256, n_mels=BINS)
    return torch.cat([torch.log(mel(part) + 1e-5) for part in samples.split(256)]).unsqueeze(1)


class _Stock:
    """MNIST's images of one split in a random order, handed out by digit, each once."""

    def __init__(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> None:
        order = torch.randperm(len(labels), generator=stream)
        self.images = images
        self.left = {d: order[labels[order] == d] for d in range(10)}

    def draw(self, digits: Tensor) -> Tensor:
        """A fresh image for each of ``digits`` ``[N]``: ``[N, 28, 28]`` uint8."""
        drawn = torch.empty_like(digits)
        for d, left in self.left.items():
            rows = torch.nonzero(digits == d).flatten()
            if len(rows) > len(left):
                raise UserError(
                    f"every pair needs an image of its own, found {len(left)} images of digit {d} left for {len(rows)} "
                    "pairs; ask for fewer pairs a recording"
                )
            drawn[rows], self.left[d] = left[: len(rows)], left[len(rows) :]
        return self.images[drawn]


def _read_recordings(folder: Path) -> dict[str, bytes]:
    """File name -> bytes of the 3000 wav files, from the folder or the archive."""
    archive = folder / "recordings.tar.gz"
    if (folder / "recordings").is_dir():
        found = {p.name: p.read_bytes() for p in (folder / "recordings").glob("*.wav")}
    elif archive.is_file():
        found = read_archive(archive, ".wav")
    else:
        raise UserError(f"avdigits needs {AVDigits.needs}; {folder} holds neither recordings/ nor recordings.tar.gz")
    if len(found) != RECORDINGS:
        raise UserError(f"{folder} must hold FSDD's {RECORDINGS} recordings, found {len(found)}; fetch them again")
    return found


def _fields(name: str) -> tuple[int, str, int]:
    """(digit, speaker, index) from ``7_jackson_32.wav``."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"FSDD's recordings must be called digit_speaker_index.wav, found {name!r}; remove it")
    return int(match[1]), match[2], int(match[3])


def _one_second(content: bytes, name: str) -> Tensor:
    samples, rate = read_wav(content, name)
    if rate != RATE:
        raise UserError(f"{name} must be sampled at {RATE} Hz, found {rate}; fetch FSDD's own file")
    return torch.nn.functional.pad(samples[:RATE], (0, max(0, RATE - len(samples))))
