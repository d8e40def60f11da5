"""CMU-MOSEI and CMU-MOSI as sequences: sentiment of opinion videos from the words, sounds and faces of an utterance."""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from balancebench_udi.config import Options, option
from balancebench_udi.data.base import Modality
from balancebench_udi.data.pack import Item, Listing, Pack, Packed, Problem, Stored
from balancebench_udi.errors import UserError

PARTS = {"train": "train", "valid": "val", "test": "test"}
"""Split of the pickle -> split here."""
KEYS = {"text": "text", "audio": "audio", "video": "vision"}
"""Modality -> key of the pickle."""
CLASSES = {
    "binary": ("negative", "non-negative"),
    "nonzero": ("negative", "positive"),
    "seven": ("-3", "-2", "-1", "0", "+1", "+2", "+3"),
    "intervals": ("below -2", "-2 to -1", "-1 to 0", "0", "0 to +1", "+1 to +2", "above +2"),
}
_LARGEST = float(np.finfo(np.float16).max)
_CHUNK = 64  # samples in memory as float64 at once
_ADMITTED = {
    "numpy": ("ndarray", "dtype"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "builtins": ("bytes", "bytearray"),
}


@dataclass(frozen=True)
class MOSEIOptions(Options):
    """Options of :class:`MOSEI`."""

    file: str = option(
        "mosei_senti_data_noalign.pkl",
        "the pickle: of MulT (mosei_senti_data*, GloVe words) or MMSA (*aligned_50, BERT words)",
        source="official code of BalanceBenchmark",
        choices=("mosei_senti_data_noalign.pkl", "mosei_senti_data.pkl", "unaligned_50.pkl", "aligned_50.pkl"),
    )
    label: str = option(
        "binary",
        "binary: score below 0 or not; nonzero: negative or positive, zeros left out; seven: the score rounded; "
        "intervals: seven classes of unit width around 0 alone, as in AGM and BalanceBenchmark",
        source="official code of BalanceBenchmark",
        choices=tuple(CLASSES),
    )
    text_steps: int = option(50, "time steps kept of the text; the files have 50", source="published files", at_least=1)
    audio_steps: int = option(
        50,
        "time steps kept of the audio; MulT's and MMSA's unaligned files have 500 (BalanceBenchmark keeps all)",
        source="ours",
        at_least=1,
    )
    video_steps: int = option(
        50,
        "time steps kept of the video; MulT's unaligned file has 500, MMSA's 375 (its settings say)",
        source="ours",
        at_least=1,
    )
    standardise: bool = option(
        True, "standardise every feature over the steps of train (BalanceBenchmark does not)", source="ours"
    )


class MOSEI(Packed):
    """CMU-MOSEI, some 22 800 utterances: ``text [50, 300 or 768]``, ``audio [50, 74]``, ``video [50, 35]``, float16.

    Words are GloVe vectors (MulT's files) or BERT's (MMSA's), sounds COVAREP's features, faces Facet's. The splits are
    those of the file, validation included: 16326 / 1871 / 4659 utterances in the unaligned files, 16265 / 1869 / 4643
    in ``mosei_senti_data.pkl``. The score of an utterance lies in -3 to 3; exactly 0 is
    non-negative with ``label=binary``, as in BalanceBenchmark. ``label=seven`` rounds halves to even, as MulT's
    evaluation does. ``label=intervals`` counts -2 and -1 with what is above, +1 and +2 with what is below them.

    What becomes of T steps of a modality, in this order:

    - a value that is NaN or infinite becomes 0, with a remark (MulT does so with -inf of the audio);
    - a step of zeros only is padding and stays 0;
    - every feature of the other steps is standardised by mean and standard deviation over those of train; one that is
      constant there becomes 0. So the pack depends on train alone, and loading computes nothing;
    - T above ``<modality>_steps`` N is cut into N segments of equal length (step i of T falls in that whose start
      ``j * T // N`` is the last one not above i), each the mean of its steps that are not padding. T below N is padded
      with zeros at the end. MMSA's ``*_lengths`` are not needed, its ``text_bert`` (ids of word pieces) is not read.

    The fingerprint is over the file's bytes, not over what was computed from them.

    The whole pickle is read into memory to be prepared (some 12 GB for the default file). It is read by an
    unpickler that admits numpy arrays and plain Python values only, so nothing in it is executed.

    Reference: A. Zadeh et al., Multimodal Language Analysis in the Wild: CMU-MOSEI Dataset and Interpretable Dynamic
    Fusion Graph, ACL 2018. Files: Y.-H. H. Tsai et al., Multimodal Transformer for Unaligned Multimodal Language
    Sequences, ACL 2019 (github.com/yaohungt/Multimodal-Transformer); github.com/thuiar/MMSA. Protocol:
    github.com/GeWu-Lab/BalanceBenchmark.

    Attributes:
        files: name of the pickle -> features a step of text, audio and video.
    """

    name = "mosei"
    reference = "Zadeh et al., CMU-MOSEI, ACL 2018; files of Tsai et al., MulT, ACL 2019, and of MMSA"
    needs = "what prepare.py made of CMU-MOSEI"
    source = (
        "mosei_senti_data_noalign.pkl or mosei_senti_data.pkl of github.com/yaohungt/Multimodal-Transformer, or "
        "unaligned_50.pkl or aligned_50.pkl (MOSEI/Processed) of github.com/thuiar/MMSA"
    )
    prepared = ("file", "label", "text_steps", "audio_steps", "video_steps", "standardise")
    Options = MOSEIOptions
    unit = "video"
    unit_columns = ("video",)
    files: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "mosei_senti_data_noalign.pkl": (300, 74, 35),
        "mosei_senti_data.pkl": (300, 74, 35),
        "unaligned_50.pkl": (768, 74, 35),
        "aligned_50.pkl": (768, 74, 35),
    }

    def stored(self) -> dict[str, Stored]:
        """``[steps, features]`` float16 of text, audio and video."""
        o = self.options
        steps = (o.text_steps, o.audio_steps, o.video_steps)
        return {m: Stored((t, width), "float16") for m, t, width in zip(KEYS, steps, self.files[o.file], strict=True)}

    def scheme(self) -> str:
        """The splits of the file."""
        return "file"

    def modalities(self, pack: Pack) -> dict[str, Modality]:
        """Three sequences."""
        return {m: Modality("sequence", tuple(values.shape[1:]), "temporal") for m, values in pack.inputs.items()}

    def listing(self, source: Path) -> Listing:
        """Read the pickle, keep its features for :meth:`decode`, and list its utterances.

        An utterance's id is its split, its row and its name in the file; columns of the index are ``file`` (the split),
        ``video`` and ``score``. A score that is not finite, and a name that occurs twice, are problems.

        Raises:
            UserError: an absent, damaged or unsafe pickle, or one of another layout.
        """
        path = source / self.options.file
        if not path.is_file():
            others = [name for name in self.files if (source / name).is_file()]
            remedy = f"--set {self.name}.file={others[0]} takes the one that is there" if others else "fetch it"
            raise UserError(f"{source} must hold {self.options.file}, it is absent; {remedy}, or see prepare.py --list")
        tables = read_pickle(path)
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        self._features = {key: self._arrays(tables, key, path) for key in PARTS}
        items: list[Item] = []
        problems: list[Problem] = []
        seen: set[str] = set()
        for key, part in PARTS.items():
            before = len(items)
            for row, (score, name, video) in enumerate(self._utterances(tables[key], key, path)):
                sample = f"{part}-{row:05d}-{name}".removesuffix("-")
                if not math.isfinite(score):
                    problems.append(Problem(sample, f"its score must be finite, found {score}"))
                elif (label := self._class(score)) is not None:
                    columns = {"file": part, "video": video, "score": f"{score:.6g}"}
                    items.append(Item(sample, label, (), columns, {"sha256": digest, "split": key, "row": row}))
                    if name and name in seen:
                        problems.append(Problem(sample, f"{name} is in the file more than once", kept=True))
                    seen.add(name)
            if len(items) == before:
                raise UserError(
                    f"{key} in {path} must hold an utterance for label={self.options.label}, found none; fetch it again"
                )
        if self.options.standardise:
            rows = [item.detail["row"] for item in items if item.columns["file"] == "train"]
            self._moments = {m: _moments(values, rows, m, path) for m, values in self._features["train"].items()}
        return Listing(items, CLASSES[self.options.label], problems)

    def decode(self, item: Item) -> tuple[dict[str, np.ndarray], list[str]]:
        """Clean, standardise and pool the row that :meth:`listing` read."""
        values, remarks = {}, []
        for m, stored in self.stored().items():
            raw = self._features[item.detail["split"]][m][item.detail["row"]]
            steps, real = _clean(raw)
            if bad := int(raw.size - np.isfinite(raw).sum()):
                remarks.append(f"{m}: {bad} values that are not finite became 0")
            if not real.any():
                remarks.append(f"{m}: every step is 0")
            if self.options.standardise:
                mean, scale = self._moments[m]
                steps = (steps - mean) * scale
            pooled = pool(steps, real, stored.shape[0])
            if np.abs(pooled).max() > _LARGEST:
                remarks.append(f"{m}: values beyond {_LARGEST:.0f}, the largest of float16, became that")
            values[m] = pooled.clip(-_LARGEST, _LARGEST).astype(np.float16)
        return values, remarks

    def _class(self, score: float) -> str | None:
        """The class of a score; None where the option leaves it out."""
        classes = CLASSES[self.options.label]
        if self.options.label == "seven":
            return classes[round(score) + 3]
        if self.options.label == "intervals":
            return classes[3 + int(math.copysign(math.ceil(abs(score)), score))]
        if self.options.label == "nonzero" and score == 0:
            return None
        return classes[0 if score < 0 else 1]

    def _utterances(self, table: Mapping[str, Any], key: str, path: Path) -> list[tuple[float, str, str]]:
        """Score, name and video of each utterance of one split, as many as there are of every modality."""
        scores, names = _scores(table, key, path), _names(table, key, path)
        for m, values in self._features[key].items():
            if not len(values) == len(scores) == len(names):
                raise UserError(
                    f"{KEYS[m]}, labels and ids of {key} in {path} must be as many, found {len(values)}, {len(scores)} "
                    f"and {len(names)}; fetch it again"
                )
        return [(score, *name) for score, name in zip(scores, names, strict=True)]

    def _arrays(self, tables: Any, key: str, path: Path) -> dict[str, np.ndarray]:
        """The features ``[N, T, D]`` of one split, as they are in the file."""
        if not isinstance(tables, dict) or not isinstance(tables.get(key), dict):
            raise UserError(
                f"{path} must be a dict of train, valid and test, each a dict, found no {key}; fetch it again"
            )
        found = {}
        for (m, name), width in zip(KEYS.items(), self.files[self.options.file], strict=True):
            values = tables[key].get(name)
            if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 3:
                what = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
                raise UserError(
                    f"{name} of {key} in {path} must be floats [N, T, {width}], found {what}; fetch it again"
                )
            if values.shape[1] == 0 or values.shape[2] != width:
                raise UserError(
                    f"{name} of {key} in {path} must be [N, T, {width}], found {values.shape}; is it another file "
                    "under this name?"
                )
            found[m] = values
        return found


@dataclass(frozen=True)
class MOSISequencesOptions(MOSEIOptions):
    """Options of :class:`MOSISequences`."""

    file: str = option(
        "mosi_data_noalign.pkl",
        "the pickle: of MulT (mosi_data*, GloVe words) or MMSA (*aligned_50, BERT words)",
        source="official code of MulT",
        choices=("mosi_data_noalign.pkl", "mosi_data.pkl", "unaligned_50.pkl", "aligned_50.pkl"),
    )


class MOSISequences(MOSEI):
    """CMU-MOSI in MulT's and MMSA's files: ``text [50, 300 or 768]``, ``audio [50, 5]``, ``video [50, 20]``, float16.

    2199 utterances, 1284 / 229 / 686 in train, validation and test; unaligned audio has 375 steps, video 500. All else
    is as in :class:`MOSEI`. These are neither the features nor the split of ``mosi``.

    Reference: A. Zadeh et al., MOSI: Multimodal Corpus of Sentiment Intensity and Subjectivity Analysis in Online
    Opinion Videos, arXiv:1606.06259 (2016). Files: as of :class:`MOSEI`.
    """

    name = "mosi_sequences"
    reference = "Zadeh et al., arXiv:1606.06259 (2016); files of Tsai et al., MulT, ACL 2019, and of MMSA"
    needs = "what prepare.py made of CMU-MOSI's sequences"
    source = (
        "mosi_data_noalign.pkl or mosi_data.pkl of github.com/yaohungt/Multimodal-Transformer, or unaligned_50.pkl or "
        "aligned_50.pkl (MOSI/Processed) of github.com/thuiar/MMSA"
    )
    Options = MOSISequencesOptions
    files: ClassVar[Mapping[str, tuple[int, int, int]]] = {
        "mosi_data_noalign.pkl": (300, 5, 20),
        "mosi_data.pkl": (300, 5, 20),
        "unaligned_50.pkl": (768, 5, 20),
        "aligned_50.pkl": (768, 5, 20),
    }


def read_pickle(path: Path) -> Any:
    """What a pickle of numpy arrays and plain Python values holds; of any protocol, of Python 2 too.

    Keys of dicts are str; other text that Python 2 wrote stays bytes. Arrays are not copied.

    Raises:
        UserError: an absent or damaged file, or one that asks for anything else: nothing of it is executed.
    """
    try:
        with path.open("rb") as handle:
            return _text_keys(_Unpickler(handle, path).load())
    except MemoryError:
        size = path.stat().st_size / 1e9
        raise UserError(
            f"{path} must fit in memory, there is too little for its {size:.1f} GB; use a larger machine"
        ) from None
    except (UserError, OSError):
        raise
    except Exception:  # a damaged pickle makes pickle and numpy raise nearly anything
        raise UserError(f"{path} must be a whole pickle, it is cut short or damaged; fetch it again") from None


class _Unpickler(pickle.Unpickler):
    """Resolves the few names that numpy arrays need, and no other."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        super().__init__(handle, encoding="bytes")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if module.startswith("numpy.core."):  # until numpy 2
            module = "numpy._core." + module.removeprefix("numpy.core.")
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _latin1
        if name not in _ADMITTED.get(module, ()):
            raise UserError(
                f"{self.path} must hold numpy arrays and plain values only, found {module}.{name}, which could run "
                "anything; fetch it from its authors"
            )
        return super().find_class(module, name)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"encoding must be latin1, found {encoding}")
    return text.encode("latin1")


def _text_keys(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {_text(key): _text_keys(inner) for key, inner in value.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _scores(table: Mapping[str, Any], key: str, path: Path) -> list[float]:
    """The score of each utterance, -3 to 3 or not finite."""
    name = "regression_labels" if "regression_labels" in table else "labels"
    try:
        values = np.asarray(table[name], dtype=np.float64)
        scores = values.reshape(len(values))  # [N], or [N, 1, 1] in MulT's
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{key} in {path} must hold labels or regression_labels, one number an utterance; fetch it again"
        ) from None
    if (np.abs(scores[np.isfinite(scores)]) > 3).any():
        raise UserError(f"scores of {key} in {path} must lie in -3 to 3, found others; fetch it again")
    return scores.tolist()


def _names(table: Mapping[str, Any], key: str, path: Path) -> list[tuple[str, str]]:
    """(name, video) of each utterance.

    An id is ``video$_$number`` (MMSA) or a row of video, start and end (MulT; ``video[number]`` where it is aligned).
    Both names are empty where a file has no ids.
    """
    ids = table.get("id")
    if ids is None:
        return [("", "")] * len(table["text"])
    if not isinstance(ids, Sequence | np.ndarray) or isinstance(ids, str | bytes):
        raise UserError(f"id of {key} in {path} must be a list, found {type(ids).__name__}; fetch it again")
    names = []
    for entry in ids:
        parts = [_text(part) for part in (entry if isinstance(entry, list | tuple | np.ndarray) else [entry])]
        video = parts[0].split("$_$")[0].split("[")[0] if parts else ""
        names.append(("_".join(parts), video))
    return names


def _clean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[..., T, D]`` as float64 with 0 for what is not finite, and ``[..., T]`` bool, False where a step is all 0."""
    steps = np.nan_to_num(values.astype(np.float64), copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return steps, (steps != 0).any(axis=-1)


def _moments(values: np.ndarray, rows: Sequence[int], m: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / standard deviation ``[D]`` over the steps of ``values [N, T, D]`` that are not padding.

    The latter is 0 where a feature is constant: scikit-learn, which judges it with rounding, puts 1 in its place.
    """
    from sklearn.preprocessing import StandardScaler  # here: other datasets do without

    scaler = StandardScaler()
    for start in range(0, len(rows), _CHUNK):
        steps, real = _clean(values[rows[start : start + _CHUNK]])
        if real.any():
            scaler.partial_fit(steps[real])
    if not hasattr(scaler, "mean_"):
        raise UserError(f"{KEYS[m]} of train in {path} must hold a step that is not 0, found none; fetch it again")
    constant = scaler.scale_ != np.sqrt(scaler.var_)
    return scaler.mean_, np.where(constant, 0.0, 1.0 / scaler.scale_)


def pool(steps: np.ndarray, real: np.ndarray, length: int) -> np.ndarray:
    """``steps [T, D]`` to ``[length, D]``: the mean of each segment over those of its steps that are ``real [T]``.

    Segment j starts at step ``j * T // length``; one without a real step is 0. With T <= length steps stay as they are,
    those that are not real become 0, and zeros follow.
    """
    steps = np.where(real[:, None], steps, 0.0)
    total = len(steps)
    if total <= length:
        return np.pad(steps, ((0, length - total), (0, 0)))
    starts = np.arange(length) * total // length
    counts = np.add.reduceat(real.astype(np.int64), starts)
    return np.add.reduceat(steps, starts, axis=0) / np.maximum(counts, 1)[:, None]
