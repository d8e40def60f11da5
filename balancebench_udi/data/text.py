"""Text as numbers without a vocabulary file: words, hashed."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from balancebench_udi.errors import UserError

LENGTH = 40
"""Tokens kept of a text, as BalanceBenchmark's max_len."""
VOCABULARY = 2**14
"""Token ids in all, the padding among them."""


def words(text: str) -> list[str]:
    """The words of a text by the default analyzer of scikit-learn's CountVectorizer.

    In lower case; a word is two or more letters, digits or underscores.
    """
    return _analyzer()(text)


def tokens(text: str, length: int = LENGTH, vocabulary: int = VOCABULARY) -> np.ndarray:
    """The ids of the first ``length`` words of a text.

    The id of a word is its 32-bit MurmurHash3 modulo ``vocabulary`` - 1, plus 1: the same on every machine, in every
    split, and with nothing to fetch or to fit. Two words may share an id (Weinberger et al., Feature Hashing for Large
    Scale Multitask Learning, ICML 2009).

    Args:
        text: any string.
        length: L.
        vocabulary: number of ids with that of the padding, 0.

    Returns:
        int32 ``[L]``: ids in 1..``vocabulary`` - 1, then zeros; zeros throughout where the text holds no word.

    Raises:
        UserError: ``length`` below 1 or ``vocabulary`` below 2.
    """
    if length < 1 or vocabulary < 2:
        raise UserError(f"tokens need length >= 1 and vocabulary >= 2, found {length} and {vocabulary}; raise them")
    from sklearn.utils import murmurhash3_32  # here: its import takes a second, and prepared texts do without

    ids = np.zeros(length, dtype=np.int32)
    for i, word in enumerate(words(text)[:length]):
        ids[i] = murmurhash3_32(word, positive=True) % (vocabulary - 1) + 1
    return ids


@functools.cache
def _analyzer() -> Callable[[str], list[str]]:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer().build_analyzer()
