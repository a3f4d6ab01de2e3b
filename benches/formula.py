"""The twin of `benches::formula`: the inputs of golden files, from a hash of a seed and an index."""
import numpy as np


def fill(seed, *shape):
    """A float32 array of `shape` in [-1, 1), equal to `benches::fill(seed, n)` to the bit."""
    with np.errstate(over="ignore"):
        i = np.arange(int(np.prod(shape)), dtype=np.uint32)
        x = i * np.uint32(0x9E3779B9) + np.uint32(seed) * np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return ((x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)).reshape(shape)
