"""`DocumentSet`: which documents of a vocabulary, such as those that a training showed, in a bit each."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import zlib

import numpy as np

from ultr.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DocumentSet:
    """A set of document ids, small enough to be kept with a model and hashable, so that a compiled model may hold it.

    Attributes:
      size: number of ids that may be in it, from 0 to below this.
      packed: their bits, eight to a byte, compressed.
    """

    size: int
    packed: bytes = dataclasses.field(repr=False)

    @classmethod
    def of(cls, inside: np.ndarray) -> DocumentSet:
        """Packs [size] bool by document id; document 0, padding or unknown, is never in it."""
        bits = np.array(inside, bool)
        bits[:1] = False
        return cls(len(bits), zlib.compress(np.packbits(bits).tobytes(), 6))

    @classmethod
    def from_text(cls, text: str) -> DocumentSet:
        """Reads what `to_text` wrote.

        Raises:
          ConfigError: something else.
        """
        size, _, packed = text.partition(":")
        try:
            found = cls(int(size), base64.b64decode(packed, validate=True))
            found.inside()
        except (ValueError, binascii.Error, zlib.error) as error:
            raise ConfigError(f"expected a set of documents, found {text[:40]!r}") from error
        return found

    def to_text(self) -> str:
        """Returns the set as a line of text."""
        return f"{self.size}:{base64.b64encode(self.packed).decode()}"

    def inside(self) -> np.ndarray:
        """Returns [size] bool by document id.

        Raises:
          ValueError: the bits are not those of so many documents.
        """
        wanted = (self.size + 7) // 8
        raw = zlib.decompressobj().decompress(self.packed, max(wanted, 0) + 1)
        if len(raw) != wanted:
            raise ValueError(f"expected {wanted} bytes, found {len(raw)}")
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=self.size).astype(bool)

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Tells which of some ids, at least 0, are in the set; an array of the same shape."""
        inside = self.inside()
        found: np.ndarray = np.append(inside, False)[np.minimum(ids, len(inside))]
        return found

    def joined(self, other: DocumentSet) -> DocumentSet:
        """Returns the documents that are in one or the other."""
        if other == self:
            return self
        sets = self.inside(), other.inside()
        bits = np.zeros(max(map(len, sets)), bool)
        for own in sets:
            bits[: len(own)] |= own
        return DocumentSet.of(bits)
