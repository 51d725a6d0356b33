"""Actions to tokens and back: uniform bins on [-1, 1] at the end of the vocabulary (arXiv 2406.09246, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ActionTokenizer:
    """256 edges on [-1, 1] give 255 centres; the two lowest ids share the last centre.

    ``token id = vocab_size - np.digitize(value, edges)``, as in the original code: 31,744 to 31,999 when published.
    """

    vocab_size: int
    """Real vocabulary, without padding."""
    num_bins: int = 256
    """Number of action tokens, which is also the number of edges."""

    @property
    def first_id(self) -> int:
        """Lowest action id (value +1)."""
        return self.vocab_size - self.num_bins

    @property
    def edges(self) -> np.ndarray:
        """(num_bins,) edges."""
        return np.linspace(-1, 1, self.num_bins)

    @property
    def centers(self) -> np.ndarray:
        """(num_bins - 1,) centres."""
        edges = self.edges
        return (edges[:-1] + edges[1:]) / 2

    def encode(self, normalized: np.ndarray) -> np.ndarray:
        """Normalised actions of any shape to int64 token ids; values are clipped to [-1, 1]."""
        return self.vocab_size - np.digitize(np.clip(normalized, -1.0, 1.0), self.edges)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Token ids of any shape to bin centres; an id that is no action token gives the nearest end."""
        bins = self.vocab_size - np.asarray(tokens, dtype=np.int64)
        return np.asarray(self.centers[np.clip(bins - 1, 0, self.num_bins - 2)])
