"""Finalisers of hash functions: they permute numbers so that every bit of the input changes every bit of the output."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Permutes uint64 numbers in place, by the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    x += np.uint64(0x9E3779B97F4A7C15)
    return _permute_in_place(x, (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), last_shift=31)


def murmur64(x: np.ndarray) -> np.ndarray:
    """Permutes uint64 numbers in place, by the 64-bit finaliser of MurmurHash3; 0 is moved first."""
    x += np.uint64(0xD1B54A32D192ED03)
    return _permute_in_place(x, (33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), last_shift=33)


def hash_strings(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Hashes n strings to uint64 [n].

    Args:
      data: uint8 bytes of all strings.
      offsets: [n + 1]; string i is `data[offsets[i]:offsets[i + 1]]`.
    """
    start, length = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
    out = length.astype(np.uint64)
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    words = np.lib.stride_tricks.as_strided(padded[:8].view(np.uint64), (len(data) + 1,), (1,), writeable=False)
    rows = np.arange(len(out))
    for place in range(0, int(length.max(initial=0)), 8):
        rows = rows[length[rows] > place]
        left = np.minimum(length[rows] - place, 8).astype(np.uint64)
        mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - np.uint64(8) * left)
        out[rows] = splitmix64(out[rows] ^ (words[start[rows] + place] & mask))
    return out


def _permute_in_place(x: np.ndarray, *rounds: tuple[int, int], last_shift: int) -> np.ndarray:
    for shift, factor in rounds:
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(last_shift)
    return x


def murmur32(x: jax.Array) -> jax.Array:
    """Permutes uint32 numbers, by the 32-bit finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def lowbias32(x: jax.Array) -> jax.Array:
    """Permutes uint32 numbers, by Wellons' lowbias32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
