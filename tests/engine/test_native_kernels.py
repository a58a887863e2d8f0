"""The kernels against their definitions in numpy, and every instruction set against plain C, bit by bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from athanor.base.errors import ModelError
from athanor.engine.native import library
from athanor.engine.native.compiling import compilers
from athanor.engine.native.library import INSTRUCTIONS
from athanor.engine.native.packing import (
    BF16,
    F32,
    GROUP,
    INT8,
    LANES,
    Q4_0,
    Q4_1,
    Q8_0,
    Arena,
    Packed,
    fill,
    fill_blocks,
    make,
    packed_size,
)

pytestmark = pytest.mark.skipif(not compilers(), reason="there is no C compiler")

SHAPES = [(16, 32), (1, 7), (50, 96), (97, 160)]
ROWS = (1, 2, 3, 5, 8, 13, 16, 21, 40)


def levels() -> range:
    return range(library.library().athanor_best() + 1)


def packed(kind: int, rows: int, columns: int, bias: bool = False) -> Packed:
    return make(Arena(packed_size(kind, rows, columns, bias)), kind, rows, columns, bias)


def product(level: int, matrix: Packed, x: np.ndarray, wide: bool = False) -> np.ndarray:
    given = np.zeros((len(x), matrix.matrix.columns), np.float32)
    given[:, : x.shape[1]] = x
    out = np.empty((len(x), matrix.matrix.rows), np.float32)
    assert not library.library().athanor_product(
        level, ctypes.byref(matrix.matrix), wide, given.ctypes.data, len(x), out.ctypes.data
    )
    return out


def quantised(x: np.ndarray, wide: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(rows, groups, 32) whole numbers and (rows, groups) fp32 scales of activations."""
    steps = np.float32(32512 if wide else 127)
    groups = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))).reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(2)
    inverse = np.divide(steps, largest, where=largest > 0, out=np.zeros_like(largest))
    return np.rint(groups * inverse[:, :, None]), largest / steps


def random_blocks(kind: int, rows: int, columns: int) -> tuple[np.ndarray, ...]:
    """Codes (rows, groups, 32) of GGUF blocks, scales and minima (rows, groups)."""
    random = np.random.default_rng(kind)
    groups = columns // GROUP
    low, high = (-128, 128) if kind == Q8_0 else (0, 16)
    codes = random.integers(low, high, (rows, groups, GROUP))
    scales, minima = (random.normal(0, 0.01, (rows, groups)).astype(np.float16) for _ in range(2))
    return codes, scales, minima


def as_blocks(kind: int, codes: np.ndarray, scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """As they lie in a file: (rows, bytes) uint8."""
    heads = [scales[:, :, None].view(np.uint8)]
    if kind == Q4_1:
        heads.append(minima[:, :, None].view(np.uint8))
    if kind == Q8_0:
        body = codes.astype(np.int8).view(np.uint8)
    else:
        body = (codes[:, :, :16] | codes[:, :, 16:] << 4).astype(np.uint8)
    return np.concatenate([*heads, body], axis=2).reshape(len(codes), -1)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [F32, BF16, INT8, Q4_0])
def test_products_are_those_of_the_definition(kind: int, shape: tuple[int, int], wide: bool) -> None:
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=random)
    bias = torch.randn(shape[0], generator=random)
    x = torch.randn(21, shape[1], generator=random).numpy()
    matrix = packed(kind, *shape, bias=True)
    fill(matrix, weight, bias)
    q, steps = quantised(x, wide)
    if kind in (F32, BF16):
        exact = x.astype(np.float64) @ (weight.bfloat16() if kind == BF16 else weight).double().numpy().T
    else:
        grouped = torch.nn.functional.pad(weight, (0, -shape[1] % GROUP)).numpy().reshape(shape[0], -1, GROUP)
        if kind == INT8:
            scales = np.abs(weight.numpy()).max(1)[:, None] / np.float32(127)
            codes = np.rint(grouped / scales[:, :, None])
        else:
            extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(2)[:, :, None], 2)[:, :, 0]
            scales = (extreme / -8).astype(np.float16).astype(np.float32)
            codes = np.clip(np.rint(grouped * (1 / scales)[:, :, None]), -8, 7)
        sums = np.einsum("mgk,ngk->mng", q, codes)
        exact = np.einsum("mng,ng,mg->mn", sums, np.broadcast_to(scales, codes.shape[:2]).astype(np.float64), steps)
    exact = exact + bias.double().numpy()
    for level in levels():
        assert np.allclose(product(level, matrix, x, wide), exact, rtol=1e-5, atol=1e-5), INSTRUCTIONS[level]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", [Q8_0, Q4_0, Q4_1])
def test_blocks_of_a_file_are_used_without_loss(kind: int, wide: bool) -> None:
    codes, scales, minima = random_blocks(kind, 50, 96)
    matrix = packed(kind, 50, 96)
    fill_blocks(matrix, torch.from_numpy(as_blocks(kind, codes, scales, minima)))
    x = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    q, steps = quantised(x, wide)
    values = (codes - (8 if kind == Q4_0 else 0)) * scales.astype(np.float64)[:, :, None]
    if kind == Q4_1:
        values = values + minima.astype(np.float64)[:, :, None]
    exact = np.einsum("mgk,ngk,mg->mn", q, values, steps)
    for level in levels():
        assert np.allclose(product(level, matrix, x, wide), exact, rtol=1e-4, atol=1e-5), INSTRUCTIONS[level]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", range(6))
def test_every_instruction_set_and_number_of_rows_gives_the_same_bits(kind: int, wide: bool) -> None:
    matrix = packed(kind, 97, 160)
    matrix.values[:] = np.random.default_rng(kind).integers(0, 256, matrix.values.shape)
    if kind in (F32, BF16):
        fill(matrix, torch.randn(97, 160), None)
    if matrix.scales is not None:
        matrix.scales[:] = np.random.default_rng(2).normal(size=matrix.scales.shape)
    if matrix.minima is not None:
        matrix.minima[:] = np.random.default_rng(3).normal(size=matrix.minima.shape)
    x = np.random.default_rng(4).normal(size=(max(ROWS), 160)).astype(np.float32) ** 3
    wanted = product(0, matrix, x, wide)
    assert np.isfinite(wanted).all()
    for level in levels():
        for rows in ROWS:
            found = product(level, matrix, x[-rows:], wide)
            assert found.tobytes() == wanted[-rows:].tobytes(), (INSTRUCTIONS[level], rows)


@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_numbers_of_sixteen_bits_do_not_overflow(sign: int) -> None:
    matrix = packed(Q8_0, 16, 32)
    codes, scales = np.full((16, 1, GROUP), 127), np.ones((16, 1), np.float16)
    codes[::2] = -128
    fill_blocks(matrix, torch.from_numpy(as_blocks(Q8_0, codes, scales, scales)))
    x = np.full((5, 32), sign * 3.0, np.float32)
    x[1, ::2], x[2, :9], x[3, 5:] = -x[1, ::2], 3.0 * 127.5 / 32512, 3.0 * 128 / 32512
    exact = np.repeat(np.array([[-128.0], [127.0]]).T, 8, 0).reshape(-1) * x.astype(np.float64).sum(1)[:, None]
    for level in levels():
        assert np.allclose(product(level, matrix, x, wide=True), exact, rtol=1e-4, atol=0.5), INSTRUCTIONS[level]


@pytest.mark.parametrize("wide", [False, True])
def test_activations_that_are_zero_or_huge_give_no_nonsense(wide: bool) -> None:
    matrix = packed(INT8, 16, 64)
    fill(matrix, torch.ones(16, 64), None)
    x = np.zeros((3, 64), np.float32)
    x[1, :] = 1e-42
    x[2, 5] = 3e34
    for level in levels():
        found = product(level, matrix, x, wide)
        assert not found[:2].any()
        assert np.allclose(found[2], 3e34)


def test_weights_that_are_no_numbers_are_refused() -> None:
    weight = torch.ones(16, 32)
    weight[3, 4] = torch.nan
    with pytest.raises(ModelError, match="not numbers"):
        fill(packed(F32, 16, 32), weight, None)
    with pytest.raises(ModelError, match="too large"):
        fill(packed(Q4_0, 16, 32), torch.full((16, 32), 1e6), None)


def test_a_foreign_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_bytes(b"no library")
    with pytest.raises(library.NativeError, match="cannot be loaded"):
        library.open_library(tmp_path / "kernels.so")


def test_tiles_have_the_documented_sizes() -> None:
    assert packed(Q4_0, 17, 33).values.shape == (2, 64 * LANES // 2)
