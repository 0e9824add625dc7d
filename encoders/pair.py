"""Two towers with their weights: what `encoders.load` returns of CLIP, SigLIP and their kin."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.image_text import ImageTextPreprocessing
from encoders.encoder import Encoder, TextEncoder, checked_texts, ids_below, same_shape
from encoders.errors import ConfigError, DataError, nearest


@dataclasses.dataclass(frozen=True, eq=False)
class PairEncoder(Encoder):
    """An image tower and a text tower (`Towers`) with their weights and preprocessing.

    Attributes:
      preprocessing: of images and of texts, or None if the weights do not say.
    """

    preprocessing: ImageTextPreprocessing | None = None

    def __call__(self, images: Any, texts: Any) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings of images and of texts; see `embed_image` and `embed_text`."""
        return self.embed_image(images), self.embed_text(texts)

    @functools.cached_property
    def image(self) -> Encoder:
        """The image tower by itself, without its projection."""
        return self._tower(Encoder, "image")

    @functools.cached_property
    def text(self) -> TextEncoder:
        """The text tower by itself, without its projection."""
        return self._tower(TextEncoder, "text")

    def _tower(self, kind: type, name: str) -> Any:
        params = {kind: of[name] for kind, of in self.variables.items() if name in of}
        preprocessing = self.preprocessing and getattr(self.preprocessing, name)
        return kind(getattr(self.module, name), params, preprocessing, self.metadata)

    def embed_image(self, images: Any, *, shapes: Any = None) -> np.ndarray:
        """Vectors of length 1 for images.

        Args:
          images: [B, H, W, C]; uint8 is normalised by `preprocessing`, floats are taken as already
            normalised. Or a list of uint8 images at their own aspect ratio, where it is for those.
          shapes: as of `Encoder`, of patches.

        Returns:
          [B, E] float32.

        Raises:
          DataError: `images` is not such a batch.
          ConfigError: the size does not divide into patches.
        """
        images, given = self.image._prepared(images, shapes)
        return np.asarray(self._images(self.variables, images, given))

    def embed_text(self, texts: Any, *, mask: Any = None, batch_size: int = 64) -> np.ndarray:
        """Vectors of length 1 for texts.

        Args:
          texts: a list of N texts, prepared as `preprocessing` says; or [N, T] integer ids, which
            are taken as prepared.
          mask: of ids, [N, T] bool, True where a token is real. None takes all where padding counts
            as tokens, and else those up to the first token that ends a text.
          batch_size: texts per step.

        Returns:
          [N, E] float32.

        Raises:
          DataError: these are no texts or ids, or no tokenizer came with the weights.
          ConfigError: ids are longer than the text tower has positions.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected a number from 1, got {batch_size}.")
        if isinstance(texts, Sequence) and (not texts or isinstance(texts[0], str)):
            if mask is not None:
                raise DataError("mask: is of ids; a text has the length it has.")
            ids, segments = self._tokenized(checked_texts(texts, "texts"))
        else:
            ids = self._checked_ids(texts)
            segments = (
                self._segments(ids) if mask is None else same_shape(ids, np.asarray(mask), "mask")
            )
        count = min(batch_size, 1 << (len(ids) - 1).bit_length())  # few shapes are compiled
        found = []
        for start in range(0, len(ids), count):
            part = slice(start, start + count)
            rows = len(ids[part])
            padding = ((0, count - rows), (0, 0))
            given = (
                np.pad(x[part].astype(np.int32), padding, mode="edge") for x in (ids, segments)
            )
            found.append(self._texts(self.variables, *given)[:rows])
        return np.concatenate([np.asarray(part) for part in found])

    def embed(self, name: str, arrays: Any) -> np.ndarray:
        """Vectors of length 1 for what an `ImageBind` has other towers of.

        Args:
          name: 'audio' or 'depth'.
          arrays: [B, H, W, 1] float, normalised as the transform 'arrays' does it.

        Returns:
          [B, E] float32.

        Raises:
          ConfigError: there is no such tower.
          DataError: these are no such arrays.
        """
        names = getattr(self.module, "names", ())
        if name not in names[2:]:
            raise ConfigError(f"model: there is no tower '{name}'.{nearest(name, names)}")
        arrays = np.asarray(arrays, np.float32)
        if arrays.ndim != 4:
            raise DataError(f"{name}: expected a batch [B, H, W, C], got {arrays.shape}.")
        return np.asarray(self._arrays(self.variables, arrays, name))

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """How well each image fits each text.

        Args:
          images: N images, as for `embed_image`.
          texts: M texts, as for `embed_text`.

        Returns:
          [N, M] float32 logits: the cosine times the learnt scale, plus the learnt bias. The
          sigmoid of SigLIP's is a probability, and so is the softmax over texts of CLIP's.
        """
        return np.asarray(self._logits(self.variables, *self(images, texts)))

    def _checked_ids(self, ids: Any) -> np.ndarray:
        ids = np.asarray(ids)
        if ids.ndim != 2 or not ids.size:
            raise DataError(f"texts: expected a list of texts or ids [N, T], got {ids.shape}.")
        return ids_below(ids, "texts", self.module.text.vocab_size, "the vocabulary")

    def _segments(self, ids: np.ndarray) -> np.ndarray:
        """[N, T] bool, True where a token is real."""
        if self.preprocessing is None and getattr(self.module.text, "causal", False):
            raise DataError(
                "texts: no tokenizer came with these weights to say which id ends a text, where "
                "its vector is read; pass `mask`."
            )
        if self.preprocessing is None or self.preprocessing.text.attend_padding:
            return np.ones(ids.shape, bool)
        end = ids == self.preprocessing.text.special.sep_id
        before = np.cumsum(end, axis=1) - end == 0
        return np.where(end.any(1, keepdims=True), before, True)

    def _tokenized(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self.preprocessing is None:
            why = self.metadata.get("no_preprocessing") or "they came without any"
            raise DataError(f"there is no tokenizer with these weights to read texts with: {why}.")
        [tokenize] = self.preprocessing.text.eval_transforms()
        rows = [tokenize({"text": text}, np.random.default_rng(0)) for text in texts]
        return tuple(np.stack([row[name] for row in rows]) for name in ("ids", "segments"))

    @functools.cached_property
    def _images(self) -> Any:
        def apply(variables: Mapping[str, Any], images: jax.Array, given: Any) -> jax.Array:
            if self.preprocessing is not None:
                images = self.preprocessing.normalize(images)
            return self.module.apply(variables, images, **given, method="embed_image")

        return jax.jit(apply)

    @functools.cached_property
    def _arrays(self) -> Any:
        def apply(variables: Mapping[str, Any], arrays: jax.Array, name: str) -> jax.Array:
            return self.module.apply(variables, name, arrays, method="embed")

        return jax.jit(apply, static_argnames="name")

    @functools.cached_property
    def _texts(self) -> Any:
        def apply(variables: Mapping[str, Any], ids: jax.Array, segments: jax.Array) -> jax.Array:
            return self.module.apply(variables, ids, segments=segments, method="embed_text")

        return jax.jit(apply)

    @functools.cached_property
    def _logits(self) -> Any:
        def apply(variables: Mapping[str, Any], images: jax.Array, texts: jax.Array) -> jax.Array:
            images, texts = jnp.asarray(images), jnp.asarray(texts)
            return self.module.apply(variables, images, texts, method="logits")

        return jax.jit(apply)
