"""A network with its weights, ready to be called: what `encoders.load` returns."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.preprocessing import Preprocessing
from encoders.errors import DataError
from encoders.types import Encoded

Layers = Sequence[int] | Literal["all"]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A network with its weights and the preprocessing they expect.

    Attributes:
      module: the Linen module; `module.apply(variables, images)` is the pure function underneath.
      variables: {'params': tree}.
      preprocessing: size and normalisation of the images, or None if the weights do not say.
      metadata: JSON about where the weights are from: 'format', 'step', 'architecture', 'dropped'
        (tensors that import left out, with reasons), 'class_names', ...
      objective: config section of the objective that `heads` belong to, or None.
      heads: parameters that came with the encoder's: a classifier, a decoder.
    """

    module: nn.Module
    variables: Mapping[str, Any]
    preprocessing: Preprocessing | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    objective: Mapping[str, Any] | None = None
    heads: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        images: Any,
        *,
        layers: Layers = (),
        mask: Any = None,
        keep: Any = None,
    ) -> Encoded:
        """Encodes a batch; compiled once for each shape and choice of layers.

        Args:
          images: [B, H, W, C]; uint8 is normalised by `preprocessing`, floats are taken as already
            normalised. Any size that divides into patches.
          layers: blocks whose outputs to return in `hidden`; negative ones count from the end.
          mask: [B, N] bool over patches, True where one is real; None if all are.
          keep: [B, K] int32, the patches to encode; None means all.

        Raises:
          DataError: `images` is not such a batch.
          ConfigError: the size does not divide into patches, or a layer does not exist.
        """
        images = self._checked(images)
        return self._apply(self.variables, images, mask, keep, _hashable(layers))

    @functools.cached_property
    def _apply(self) -> Any:
        def apply(variables: Any, images: Any, mask: Any, keep: Any, layers: Any) -> Encoded:
            if self.preprocessing is not None:
                images = self.preprocessing.normalize(images)
            return self.module.apply(variables, images, mask=mask, keep=keep, layers=layers)

        return jax.jit(apply, static_argnames="layers")

    def _checked(self, images: Any) -> Any:
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        if images.ndim == 3:
            raise DataError(
                f"images: expected a batch [B, H, W, C], got one image {images.shape}; "
                "add the batch axis, images[None]."
            )
        if images.ndim != 4:
            raise DataError(f"images: expected a batch [B, H, W, C], got {images.shape}.")
        if not (images.dtype == np.uint8 or jnp.issubdtype(images.dtype, np.floating)):
            raise DataError(f"images: expected uint8 or normalised floats, got {images.dtype}.")
        if self.preprocessing is None:
            if images.dtype == np.uint8:
                why = self.metadata.get("no_preprocessing") or "the weights came without any"
                raise DataError(
                    f"images: there is no preprocessing to normalise uint8 with ({why}); pass "
                    "normalised floats or set `preprocessing`."
                )
        elif images.shape[-1] != self.preprocessing.channels:
            raise DataError(
                f"images: expected {self.preprocessing.channels} channels in the last axis, got "
                f"{images.shape}."
            )
        return images


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder(Encoder):
    """An encoder of token ids; there is no preprocessing."""

    def __call__(
        self,
        ids: Any,
        *,
        mask: Any = None,
        token_types: Any = None,
        layers: Layers = (),
    ) -> Encoded:
        """Encodes a batch; compiled once for each shape and choice of layers.

        Args:
          ids: [B, T] integers below the model's `vocab_size`.
          mask: [B, T] bool, or 0 and 1, True where a token is real; None if all are.
          token_types: [B, T] integers, the segment of each token; None for the first.
          layers: blocks whose outputs to return in `hidden`; negative ones count from the end.

        Raises:
          DataError: `ids`, `mask` or `token_types` are not such arrays.
          ConfigError: there are more tokens than positions, or a layer does not exist.
        """
        ids = np.asarray(ids)
        if ids.ndim == 1:
            raise DataError(
                f"ids: expected a batch [B, T], got one text {ids.shape}; add the batch axis, "
                "ids[None]."
            )
        if ids.ndim != 2 or not ids.size:
            raise DataError(f"ids: expected a batch [B, T], got {ids.shape}.")
        ids = _below(ids, "ids", self.module.vocab_size, "the vocabulary")
        if token_types is not None:
            token_types = _like(ids, np.asarray(token_types), "token_types")
            rows = self.module.num_token_types
            if not rows:
                kind = type(self.module).__name__
                raise DataError(f"token_types: a {kind} has none; leave them out.")
            token_types = _below(token_types, "token_types", rows, "the token types")
        if mask is not None:
            mask = _like(ids, np.asarray(mask), "mask")
            if not (mask.dtype == bool or np.isin(mask, (0, 1)).all()):
                raise DataError("mask: expected True where a token is real and False elsewhere.")
            mask = mask.astype(bool)
        return self._apply(self.variables, ids, mask, token_types, _hashable(layers))

    @functools.cached_property
    def _apply(self) -> Any:
        def apply(variables: Any, ids: Any, mask: Any, token_types: Any, layers: Any) -> Encoded:
            inputs = {"mask": mask, "token_types": token_types}
            return self.module.apply(variables, ids, **inputs, layers=layers)

        return jax.jit(apply, static_argnames="layers")


def _hashable(layers: Layers) -> Literal["all"] | tuple[int, ...]:
    return "all" if layers == "all" else tuple(int(layer) for layer in layers)


def _like(ids: np.ndarray, array: np.ndarray, name: str) -> np.ndarray:
    if array.shape != ids.shape:
        raise DataError(f"{name}: expected the shape of ids, {ids.shape}, got {array.shape}.")
    return array


def _below(array: np.ndarray, name: str, size: int, what: str) -> np.ndarray:
    """The array as int32, if it holds integers in [0, size)."""
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name}: expected integers, got {array.dtype}.")
    wrong = array[(array < 0) | (array >= size)]
    if wrong.size:
        raise DataError(f"{name}: {wrong[0]} is not in {what}, which goes from 0 to {size - 1}.")
    return array.astype(np.int32)
