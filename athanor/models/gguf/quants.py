"""GGUF's block formats: how numbers are packed, and how they are unpacked.

A tensor is a sequence of blocks of 32 or 256 numbers; each block has its own scale, and in some formats an offset. The
layouts are llama.cpp's (ggml-quants.c); the tests compare with the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Bytes = np.ndarray  # (blocks, bytes of a block) uint8
Numbers = np.ndarray  # (blocks, numbers of a block) fp32

_AT_A_TIME = 1 << 17  # numbers that are unpacked together: what is made on the way stays in the processor's cache


@dataclass(frozen=True)
class Format:
    """numbers, size: numbers and bytes of a block. unpack: writes the numbers of blocks into its second argument; None
    where torch can read it as it is.
    """

    name: str
    numbers: int
    size: int
    unpack: Callable[[Bytes, Numbers], None] | None = None
    dtype: torch.dtype | None = None


def _half(data: Bytes, at: int) -> np.ndarray:
    """(blocks, 1) fp32 from the two bytes at `at`."""
    return np.ascontiguousarray(data[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(data: Bytes, out: Numbers) -> None:
    """(blocks, 16) bytes → (blocks, 32): all low halves, then all high halves."""
    np.bitwise_and(data, 0x0F, out=out[:, :16])
    np.right_shift(data, 4, out=out[:, 16:])


def _fifth_bits(data: Bytes) -> np.ndarray:
    """(blocks, 4) bytes → (blocks, 32) uint8 of 0 or 16."""
    return np.unpackbits(data, axis=1, bitorder="little") << 4


def _q4_0(data: Bytes, out: Numbers) -> None:
    _nibbles(data[:, 2:], out)
    out -= 8
    out *= _half(data, 0)


def _q4_1(data: Bytes, out: Numbers) -> None:
    _nibbles(data[:, 4:], out)
    out *= _half(data, 0)
    out += _half(data, 2)


def q5_0_numbers(data: Bytes) -> np.ndarray:
    """(blocks, 32) int8: the quantised numbers of Q5_0."""
    both = np.concatenate([data[:, 6:] & 0x0F, data[:, 6:] >> 4], axis=1)
    return (both | _fifth_bits(data[:, 2:6])).view(np.int8) - np.int8(16)


def _q5_0(data: Bytes, out: Numbers) -> None:
    np.multiply(q5_0_numbers(data), _half(data, 0), out=out)


def _q5_1(data: Bytes, out: Numbers) -> None:
    _nibbles(data[:, 8:], out)
    out += _fifth_bits(data[:, 4:8])
    out *= _half(data, 0)
    out += _half(data, 2)


def _q8_0(data: Bytes, out: Numbers) -> None:
    np.multiply(data[:, 2:].view(np.int8), _half(data, 0), out=out)


def _quarters(data: Bytes) -> np.ndarray:
    """(blocks, 64) bytes → (blocks, 16, 16) uint8: of every 32 bytes the lowest two bits, then the next ones."""
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    return ((data.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 16, 16)


def _q2_k(data: Bytes, out: Numbers) -> None:
    scales, offsets = (data[:, :16] & 0x0F) * _half(data, 80), (data[:, :16] >> 4) * _half(data, 82)
    grouped = out.reshape(-1, 16, 16)
    np.multiply(_quarters(data[:, 16:80]), scales[:, :, None], out=grouped)
    grouped -= offsets[:, :, None]


def _q3_k(data: Bytes, out: Numbers) -> None:
    thirds = (data[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    wide = (_quarters(data[:, 32:96]) | (thirds << 2).reshape(-1, 16, 16)).view(np.int8) - np.int8(4)
    low, high = data[:, 96:104], data[:, 104:108]
    upper = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1) << 4
    scales = (np.concatenate([low & 0x0F, low >> 4], axis=1) | upper).view(np.int8) - np.int8(32)
    np.multiply(wide, (scales * _half(data, 108))[:, :, None], out=out.reshape(-1, 16, 16))


def _six_bit_scales(packed: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, 12) bytes → eight scales and eight offsets of six bits each, (blocks, 8) fp32."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (rest & 0x0F) | ((first >> 6) << 4)], axis=1)
    offsets = np.concatenate([second & 63, (rest >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), offsets.astype(np.float32)


def _scales_and_offsets(data: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, 8) fp32 each, of Q4_K or Q5_K."""
    scales, offsets = _six_bit_scales(data[:, 4:16])
    return scales * _half(data, 0), offsets * _half(data, 2)


def q4_k_parts(data: Bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(blocks, 8, 32) quantised numbers of Q4_K, and the scales and offsets of each 32."""
    return _by_64(data[:, 16:]), *_scales_and_offsets(data)


def _with_scales(wide: np.ndarray, data: Bytes, out: Numbers) -> None:
    """wide: (blocks, 8, 32) quantised numbers of Q4_K or Q5_K."""
    scales, offsets = _scales_and_offsets(data)
    grouped = out.reshape(wide.shape)
    np.multiply(wide, scales[:, :, None], out=grouped)
    grouped -= offsets[:, :, None]


def _by_64(data: Bytes) -> np.ndarray:
    """(blocks, 128) bytes → (blocks, 8, 32): of every 32 bytes the low halves, then the high ones."""
    groups = data.reshape(len(data), 4, 32)
    return np.stack([groups & 0x0F, groups >> 4], axis=2).reshape(len(data), 8, 32)


def _q4_k(data: Bytes, out: Numbers) -> None:
    _with_scales(_by_64(data[:, 16:]), data, out)


def _q5_k(data: Bytes, out: Numbers) -> None:
    bits = (data[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    _with_scales(_by_64(data[:, 48:]) | (bits << 4), data, out)


def _q6_k(data: Bytes, out: Numbers) -> None:
    low = data[:, :128].reshape(-1, 2, 2, 32)  # (blocks, half, pair, 32)
    high = data[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.stack([low[:, :, 0] & 0x0F, low[:, :, 1] & 0x0F, low[:, :, 0] >> 4, low[:, :, 1] >> 4], axis=2)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    wide = (low | (((high >> shifts) & 3) << 4)).view(np.int8) - np.int8(32)
    scales = data[:, 192:208].view(np.int8).astype(np.float32) * _half(data, 208)
    np.multiply(wide.reshape(-1, 16, 16), scales[:, :, None], out=out.reshape(-1, 16, 16))


FORMATS: dict[int, Format] = {
    0: Format("F32", 1, 4, dtype=torch.float32),
    1: Format("F16", 1, 2, dtype=torch.float16),
    2: Format("Q4_0", 32, 18, _q4_0),
    3: Format("Q4_1", 32, 20, _q4_1),
    6: Format("Q5_0", 32, 22, _q5_0),
    7: Format("Q5_1", 32, 24, _q5_1),
    8: Format("Q8_0", 32, 34, _q8_0),
    10: Format("Q2_K", 256, 84, _q2_k),
    11: Format("Q3_K", 256, 110, _q3_k),
    12: Format("Q4_K", 256, 144, _q4_k),
    13: Format("Q5_K", 256, 176, _q5_k),
    14: Format("Q6_K", 256, 210, _q6_k),
    30: Format("BF16", 1, 2, dtype=torch.bfloat16),
}
"""By their number in a file."""


def unpack(data: np.ndarray, form: Format, shape: tuple[int, ...]) -> Tensor:
    """The tensor of `shape` in `data` (bytes, uint8): fp32, or for plain formats their own type."""
    if form.unpack is None:
        assert form.dtype is not None
        return torch.frombuffer(bytearray(data), dtype=form.dtype).view(shape)
    blocks = data.reshape(-1, form.size)
    numbers = np.empty((len(blocks), form.numbers), dtype=np.float32)
    step = _AT_A_TIME // form.numbers
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale; whoever reads the weights refuses them
        for start in range(0, len(blocks), step):
            form.unpack(blocks[start : start + step], numbers[start : start + step])
    return torch.from_numpy(numbers.reshape(shape))
