"""Feature hashing of words: no model, yet names and rare words keep their meaning.

Sentence encoders separate topics and blur names, awards and verdicts, which are much of what an
LLM says about an item. Hashing (Weinberger et al., ICML 2009) keeps each word as a direction of
its own, needs no fit and no download, and its vectors never change. Use it with
`train.hein.scaling: principal`, which finds the directions that texts share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

from reki_ray.config import EncodeConfig
from reki_ray.core.vectors import normalise
from reki_ray.encoding.encoders.protocol import EncoderIdentity, check_texts


class HashingEncoder:
    """Hashes the words of a text into the components of its vector.

    s[j] = sum over the words w with hash(w) = j of sign(w) count(w)
    r = sign(s) ln(1 + |s|), divided by its length
    """

    def __init__(self, config: EncodeConfig, identity: EncoderIdentity) -> None:
        self.identity = identity
        self.dimension = config.dimension
        self._hashing = HashingVectorizer(
            n_features=config.dimension, token_pattern=r"(?u)\w+", norm=None, dtype=np.float32
        )

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`."""
        check_texts(texts)
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        counts = self._hashing.transform(texts).toarray()  # (N, d)
        vectors = np.sign(counts) * np.log1p(np.abs(counts))
        # Texts of punctuation have no words, and words of opposite sign can cancel out.
        vectors[~vectors.any(axis=1), 0] = 1.0
        return normalise(vectors)
