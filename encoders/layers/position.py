"""Positions in a row or on a grid: learned and resized, fixed sin-cos, and rotary.

Those that depend on the distance of two tokens only are in `relative`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from encoders.errors import ConfigError

# --- fixed sin-cos ------------------------------------------------------------------------------


def sincos1d(length: int, width: int, temperature: float = 10000.0) -> np.ndarray:
    """The fixed positions of the first transformer (arXiv 1706.03762, section 3.5).

    Channels are [sin(t w_0), cos(t w_0), sin(t w_1), cos(t w_1), ...] with w_i =
    temperature^-(2i / width), for tokens t from 0.

    Returns:
      float32 [length, width].

    Raises:
      ConfigError: the width is odd.
    """
    sin, cos = _turns(length, width, temperature)
    return np.stack([sin, cos], axis=-1).reshape(length, width)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Whisper's positions, float32 [length, width]: sin(t w) and then cos(t w).

    w = 10000^(-i / (D/2 - 1)) for D/2 whole numbers i from 0.
    """
    omega = 10000.0 ** (-np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(length)[:, None] * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _turns(length: int, width: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines of t temperature^-(2i / width), float32 [length, width / 2]."""
    if width % 2:
        raise ConfigError(f"positions: sines and cosines need an even size, got {width}.")
    omega = temperature ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    angles = np.arange(length, dtype=np.float64)[:, None] * omega
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


def sincos2d(
    grid: tuple[int, int],
    width: int,
    convention: Literal["mae", "big_vision"] = "mae",
    temperature: float = 10000.0,
) -> np.ndarray:
    """Fixed two-dimensional sin-cos position embeddings.

    Channels are [sin(x w), cos(x w), sin(y w), cos(y w)] with x the column and y the row, as in
    MoCo v3 and MAE, and w = temperature^-e for width/4 exponents e from 0. The two conventions in
    use differ in the step: 'mae' ends before 1 (e = i / (D/4)), 'big_vision' at 1 (i / (D/4 - 1)).

    Returns:
      float32 [gh, gw, width].

    Raises:
      ConfigError: the width is not divisible by four.
    """
    if width % 4:
        raise ConfigError(f"positions: sincos2d needs a width divisible by 4, got {width}.")
    bands = width // 4
    steps = bands if convention == "mae" else max(bands - 1, 1)
    omega = temperature ** -(np.arange(bands, dtype=np.float64) / steps)
    y, x = np.mgrid[: grid[0], : grid[1]]
    angles = [axis[..., None] * omega for axis in (x, y)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


# --- learned, resized ---------------------------------------------------------------------------


Resize = Literal["antialias", "bilinear", "plain"]


def _cubic(distance: Any, a: float, xp: Any = np) -> Any:
    """Keys' cubic kernel (1981) with its free parameter a."""
    d = xp.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return xp.where(d <= 1, near, xp.where(d < 2, far, 0.0))


def _taps(old: int, new: Any, index: Any, method: Resize, xp: Any = np) -> Any:
    """[..., old] weights that make the pixels `index` [...] of a row of `new` [...] out of `old`.

    The kernel is widened when shrinking, and the weights renormalised at the border.
    """
    ratio = old / new
    distance = xp.arange(old) + 0.5 - ((index + 0.5) * ratio)[..., None]
    distance = distance / xp.maximum(ratio, 1.0)[..., None]
    triangle = method == "bilinear"
    weights = xp.maximum(1 - xp.abs(distance), 0) if triangle else _cubic(distance, -0.5, xp)
    return weights / weights.sum(-1, keepdims=True)


def resize_matrix(old: int, new: int, method: Resize) -> np.ndarray:
    """The [new, old] matrix of a resize along one axis, pixel centres at half-integers.

    'antialias' is PIL's and timm's bicubic: a = -0.5, the kernel widened when shrinking, weights
    renormalised at the border; 'bilinear' is that with a triangle for a kernel. 'plain' is the
    bicubic of `torch.nn.functional.interpolate` without antialias, as transformers' ViTs have it:
    a = -0.75, four taps, the border repeated.
    """
    if method != "plain":
        sizes = np.full(new, new, np.float64)
        return _taps(old, sizes, np.arange(new, dtype=np.float64), method).astype(np.float32)
    ratio = old / new
    centre = (np.arange(new, dtype=np.float64) + 0.5) * ratio
    first = np.floor(centre - 0.5).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        index = first + tap
        value = _cubic(centre - 0.5 - index, -0.75)
        np.add.at(weights, (np.arange(new), np.clip(index, 0, old - 1)), value)
    return weights.astype(np.float32)


def resize_positions(
    positions: jax.Array,
    grid: tuple[int, int],
    method: Resize = "antialias",
) -> jax.Array:
    """Resizes learned positions [gh, gw, D] to another grid; the same grid returns them untouched.

    'antialias' equals timm's `resample_abs_pos_embed`, 'plain' what transformers' ViT does,
    'bilinear' what its SigLIP 2 does (see `resize_matrix`). Computed in float32, returned in the
    dtype of `positions`.
    """
    if positions.shape[:2] == tuple(grid):
        return positions
    rows = resize_matrix(positions.shape[0], grid[0], method)
    columns = resize_matrix(positions.shape[1], grid[1], method)
    wide = jnp.asarray(positions, jnp.float32)
    resized = jnp.einsum("Hh,Ww,hwd->HWd", rows, columns, wide, precision="highest")
    return resized.astype(positions.dtype)


def positions_at(
    positions: jax.Array, places: jax.Array, sizes: jax.Array, method: Resize
) -> jax.Array:
    """Learned positions of patches, each as if resized to the grid of its own image.

    Args:
      positions: [gh, gw, D].
      places: [..., 2] int32, row and column of each patch.
      sizes: [..., 2] int32, rows and columns of the grid it is on.
      method: as of `resize_matrix`; not 'plain'.

    Returns:
      [..., D] in the dtype of `positions`, computed in float32.

    Raises:
      ConfigError: the method is 'plain'.
    """
    if method == "plain":
        raise ConfigError(
            "model.position_resize: grids that differ by image take 'antialias' or 'bilinear'."
        )
    places, sizes = places.astype(jnp.float32), sizes.astype(jnp.float32)
    rows, columns = (
        _taps(positions.shape[axis], sizes[..., axis], places[..., axis], method, jnp)
        for axis in (0, 1)
    )
    weights = rows[..., :, None] * columns[..., None, :]  # [..., gh, gw]
    wide = positions.astype(jnp.float32)
    found = jnp.einsum("...hw,hwd->...d", weights, wide, precision="highest")
    return found.astype(positions.dtype)


# --- rotary -------------------------------------------------------------------------------------


def rotary1d(
    length: int, head_dim: int, temperature: float = 10000.0
) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines for tokens in a row (arXiv 2104.09864), channel i paired with i + d/2.

    That pairing is GPT-NeoX's, and so that of ModernBERT's weights.

    Returns:
      (sin, cos), each float32 [length, head_dim / 2].

    Raises:
      ConfigError: the head's size is odd.
    """
    return _turns(length, head_dim, temperature)


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Axial rotary positions as timm's `RotaryEmbeddingCat` computes them for its ViTs and EVAs.

    A quarter of the head's size is the number of frequencies, temperature^-(i / (d/4)); the first
    half of the channel pairs turns with one coordinate and the second half with the other.

    Attributes:
      temperature: base of the frequencies: 10000 in EVA, 100 in RoPE-ViT (arXiv 2403.13298).
      reference_grid: (gh, gw) trained on: coordinates are scaled so that another grid spans the
        same range (EVA-02); None leaves them in patches.
      offset: added to every coordinate (1 in the Perception Encoder).
      order: which coordinate comes first, 'yx' (timm's 'ij') or 'xy'.
    """

    temperature: float = 10000.0
    reference_grid: tuple[int, int] | None = None
    offset: float = 0.0
    order: Literal["yx", "xy"] = "yx"


def rotary2d(grid: tuple[int, int], head_dim: int, rotary: Rotary) -> tuple[np.ndarray, np.ndarray]:
    """Sines and cosines that `rotate` turns queries and keys with.

    Returns:
      (sin, cos), each float32 [gh * gw, head_dim], every value twice in a row.

    Raises:
      ConfigError: the head's size is not divisible by four.
    """
    if head_dim % 4:
        raise ConfigError(f"positions: rotary2d needs heads divisible by 4, got {head_dim}.")
    bands = head_dim // 4
    omega = rotary.temperature ** -(np.arange(bands, dtype=np.float64) / bands)
    axes = [np.arange(size, dtype=np.float64) + rotary.offset for size in grid]
    if rotary.reference_grid is not None:
        spans = zip(axes, grid, rotary.reference_grid, strict=True)
        axes = [axis / size * reference for axis, size, reference in spans]
    y, x = np.meshgrid(*axes, indexing="ij")
    pair = (y, x) if rotary.order == "yx" else (x, y)
    angles = np.concatenate([axis.reshape(-1, 1) * omega for axis in pair], axis=1)
    angles = np.repeat(angles, 2, axis=1)
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


def rotary_of_tokens(
    sin: np.ndarray, cos: np.ndarray, num_prefix: int, keep: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Tables of patches to tables of tokens: kept patches only, after unturned prefix tokens.

    Args:
      sin, cos: [N, d] of all patches.
      num_prefix: P, how many tokens precede the patches; their angle is zero.
      keep: [B, K] int32 patches that are encoded, or None for all.

    Returns:
      (sin, cos), each [P + N, d], or [B, P + K, d] if `keep` is given.
    """
    sin = np.concatenate([np.zeros((num_prefix, sin.shape[1]), np.float32), sin])
    cos = np.concatenate([np.ones((num_prefix, cos.shape[1]), np.float32), cos])
    if keep is None:
        return jnp.asarray(sin), jnp.asarray(cos)
    prefix = jnp.broadcast_to(jnp.arange(num_prefix), (keep.shape[0], num_prefix))
    index = jnp.concatenate([prefix, keep + num_prefix], axis=1)
    return jnp.asarray(sin)[index], jnp.asarray(cos)[index]


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Turns pairs of channels of x [B, T, H, d]: (a, b) -> (a cos - b sin, b cos + a sin).

    Args:
      x: queries or keys.
      sin, cos: [T, d] or [B, T, d], every value twice in a row, for neighbouring pairs; [T, d/2] or
        [B, T, d/2] for pairs of a channel in the first half and one in the second. Where the angle
        is zero (prefix tokens) x is left as it is.

    Returns:
      [B, T, H, d] in x's dtype, computed in float32.
    """
    y = x.astype(jnp.float32)
    sin, cos = sin[..., None, :], cos[..., None, :]
    if 2 * sin.shape[-1] == x.shape[-1]:
        a, b = jnp.split(y, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return turned.astype(x.dtype)
    pairs = y.reshape(*y.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(y.shape)
    return (y * cos + turned * sin).astype(x.dtype)
