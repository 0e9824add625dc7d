"""A network with its weights, ready to be called: what `encoders.load` returns."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from encoders.data.buckets import length_batches
from encoders.data.preprocessing import Preprocessing
from encoders.data.sources.base import CorruptExample
from encoders.data.text import TextPreprocessing
from encoders.errors import CheckpointError, ConfigError, DataError
from encoders.layers.pooling import pool, unit
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
        shapes: Any = None,
    ) -> Encoded:
        """Encodes a batch; compiled once for each shape and choice of layers.

        Args:
          images: [B, H, W, C]; uint8 is normalised by `preprocessing`, floats are taken as already
            normalised. Any size that divides into patches. Or a list of uint8 images, where
            `preprocessing` is for images at their own aspect ratio.
          layers: blocks whose outputs to return in `hidden`; negative ones count from the end.
          mask: [B, N] bool over patches, True where one is real; None if all are.
          keep: [B, K] int32, the patches to encode; None means all.
          shapes: [B, 2] int32, rows and columns of patches, where `images` are patches [B, N, P] of
            images at their own aspect ratio.

        Raises:
          DataError: `images` is not such a batch.
          ConfigError: the size does not divide into patches, or a layer does not exist.
        """
        images, given = self._prepared(images, shapes)
        return self._apply(self.variables, images, mask, keep, given, hashable(layers))

    @functools.cached_property
    def _apply(self) -> Any:
        def apply(
            variables: Any, images: Any, mask: Any, keep: Any, given: Any, layers: Any
        ) -> Encoded:
            if self.preprocessing is not None:
                images = self.preprocessing.normalize(images)
            given = {"mask": mask, "keep": keep, "layers": layers, **given}
            return self.module.apply(variables, images, **given)

        return jax.jit(apply, static_argnames="layers")

    def _prepared(self, images: Any, shapes: Any = None) -> tuple[Any, dict[str, np.ndarray]]:
        """Images as the module takes them, and what it is given with patches."""
        preprocessing = self.preprocessing
        if shapes is not None:
            if np.ndim(images) != 3:
                raise DataError(
                    f"images: with shapes expected patches [B, N, P], got {np.shape(images)}."
                )
            return images, {"shapes": np.asarray(shapes, np.int32)}
        native = isinstance(images, Sequence) and getattr(preprocessing, "max_patches", None)
        if not native:
            return self._checked(images), {}
        transforms, rows = preprocessing.eval_transforms(), []
        for number, image in enumerate(images):
            example = {"image": np.asarray(image)}
            try:
                for transform in transforms:
                    example = transform(example, np.random.default_rng(0))
            except CorruptExample as error:
                raise DataError(f"images: number {number}: {error}.") from error
            rows.append(example)
        if not rows:
            raise DataError("images: expected a list of images, got an empty one.")
        patches, shapes = (np.stack([row[name] for row in rows]) for name in ("image", "shapes"))
        return patches, {"shapes": shapes}

    def _checked(self, images: Any) -> Any:
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        size = getattr(self.preprocessing, "vector_size", None)
        if size is not None:
            if images.shape[1:] != (size,):
                raise DataError(f"images: expected vectors [B, {size}], got {images.shape}.")
            return images
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
    """An encoder of token ids, or of texts where a tokenizer travels with the weights.

    Its metadata may hold 'embedding', how a text becomes a vector: 'pooling' (names that `pool`
    knows; of several the vectors stand side by side), 'normalize' and 'prompt', a text that goes
    before every other one.
    """

    preprocessing: TextPreprocessing | None = None

    def __call__(
        self,
        ids: Any,
        *,
        mask: Any = None,
        segments: Any = None,
        token_types: Any = None,
        layers: Layers = (),
    ) -> Encoded:
        """Encodes a batch; compiled once for each shape and choice of layers.

        Args:
          ids: [B, T] integers below the model's `vocab_size`.
          mask: [B, T] bool, or 0 and 1, True where a token is real; None if all are.
          segments: [B, T] integers in place of `mask`, where rows were packed from several texts: 0
            for padding, 1, 2, ... for the texts.
          token_types: [B, T] integers, the segment of each token; None for the first.
          layers: blocks whose outputs to return in `hidden`; negative ones count from the end.

        Raises:
          DataError: `ids`, `mask`, `segments` or `token_types` are not such arrays.
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
        ids = ids_below(ids, "ids", self.module.vocab_size, "the vocabulary")
        given = {}
        if token_types is not None:
            token_types = same_shape(ids, np.asarray(token_types), "token_types")
            rows = self.module.num_token_types
            if not rows:
                kind = type(self.module).__name__
                raise DataError(f"token_types: a {kind} has none; leave them out.")
            given["token_types"] = ids_below(token_types, "token_types", rows, "the token types")
        if segments is not None:
            segments = same_shape(ids, np.asarray(segments), "segments")
            given["segments"] = ids_below(segments, "segments", 2**31, "the segments")
        if mask is not None:
            mask = same_shape(ids, np.asarray(mask), "mask")
            if not (mask.dtype == bool or np.isin(mask, (0, 1)).all()):
                raise DataError("mask: expected True where a token is real and False elsewhere.")
            given["mask"] = mask.astype(bool)
        return self._apply(self.variables, ids, given, hashable(layers))

    @functools.cached_property
    def _apply(self) -> Any:
        def apply(variables: Any, ids: Any, given: Any, layers: Any) -> Encoded:
            return self.module.apply(variables, ids, **given, layers=layers)

        return jax.jit(apply, static_argnames="layers")

    def embed(
        self,
        texts: Sequence[str],
        others: Sequence[str] | None = None,
        *,
        pooling: str | Sequence[str] | None = None,
        normalize: bool | None = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """One vector for every text.

        Texts are sorted by length and padded to powers of two, so that little padding is computed
        and few shapes are compiled. Longer ones than `preprocessing.max_length` are cut.

        Args:
          texts: N texts; an empty one is encoded as its special tokens.
          others: N further texts, each to share a row with the text it belongs to.
          pooling: how tokens become a vector, see `pool`; None is what the weights say, else the
            module's way, else 'mean'.
          normalize: whether vectors have length 1; None is what the weights say, else False.
          batch_size: texts per step.

        Returns:
          [N, D] float32.

        Raises:
          DataError: `texts` are no texts, or none; or no tokenizer came with the weights.
          ConfigError: `pooling` is unknown.
        """
        embedding = self.metadata.get("embedding") or {}
        if normalize is None:
            normalize = embedding.get("normalize", False)
        vectors = self._vectors(texts, others, batch_size, self._pooling(pooling), normalize)
        return np.asarray(vectors, np.float32)

    def score(
        self, texts: Sequence[str], others: Sequence[str], *, batch_size: int = 64
    ) -> np.ndarray:
        """How well each text fits its other, by the head that came with a cross-encoder's weights.

        Returns:
          [N] float32 logits.

        Raises:
          DataError: as `embed`.
          CheckpointError: there is no head that gives one number.
        """
        head = self.heads.get("head", {})
        if "kernel" not in head or head["kernel"].shape[-1] != 1:
            raise CheckpointError(
                "these weights cannot score pairs: they hold no head with one output, as the "
                "objective 'ranking' trains."
            )
        vectors = self._vectors(texts, others, batch_size, self._pooling(None), False)
        return np.asarray(vectors @ head["kernel"] + head["bias"], np.float32)[:, 0]

    def _pooling(self, asked: str | Sequence[str] | None) -> tuple[str, ...] | None:
        """Names of poolings; None is the module's own."""
        said = (self.metadata.get("embedding") or {}).get("pooling")
        names = asked or said or (None if self.module.pool != "none" else "mean")
        return (names,) if isinstance(names, str) else names and tuple(names)

    def _vectors(
        self,
        texts: Sequence[str],
        others: Sequence[str] | None,
        batch_size: int,
        pooling: tuple[str, ...] | None,
        normalize: bool,
    ) -> np.ndarray:
        """[N, D] vectors in the order of the texts."""
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected a number from 1, got {batch_size}.")
        if self.preprocessing is None:
            why = self.metadata.get("no_preprocessing") or "they came without any"
            raise DataError(f"there is no tokenizer with these weights to read texts with: {why}.")
        prompt = (self.metadata.get("embedding") or {}).get("prompt") or ""
        texts = [prompt + text for text in checked_texts(texts, "texts")]
        if others is not None and len(others) != len(texts):
            raise DataError(f"others: expected {len(texts)}, one for each text, got {len(others)}.")
        parts = [texts] if others is None else [texts, checked_texts(others, "others")]
        parts = [[self.preprocessing.prepare(text) for text in part] for part in parts]
        tokenizer, longest = self.preprocessing.opened, self.preprocessing.max_length
        tokens = zip(*map(tokenizer.batch_ids, parts), strict=True)
        rows = [tokenizer.assemble(row, longest) for row in tokens]
        found: np.ndarray | None = None
        pending: collections.deque = collections.deque()

        def collect() -> None:
            nonlocal found
            numbers, vectors = pending.popleft()
            vectors = np.asarray(vectors)
            if found is None:
                found = np.empty((len(texts), vectors.shape[1]), vectors.dtype)
            found[numbers] = vectors[: len(numbers)]

        whole = self.preprocessing.attend_padding
        lengths = [longest if whole else len(row[0]) for row in rows]
        for numbers, length, size in length_batches(lengths, batch_size, longest):
            ids = np.full((size, length), tokenizer.vocabulary.pad_id, np.int32)
            types, mask = np.zeros_like(ids), np.full(ids.shape, whole)
            for place, number in enumerate(numbers):
                row_ids, row_types, _ = rows[number]
                ids[place, : len(row_ids)] = row_ids
                types[place, : len(row_ids)] = row_types
                mask[place, : len(row_ids)] = True
            given = {"mask": mask}
            if self.preprocessing.token_types and self.module.num_token_types:
                given["token_types"] = types
            pending.append((numbers, self._pool(self.variables, ids, given, pooling, normalize)))
            if len(pending) > 2:  # the device computes while the host fills the next batch
                collect()
        while pending:
            collect()
        return found

    @functools.cached_property
    def _pool(self) -> Any:
        def apply(variables: Any, ids: Any, given: Any, pooling: Any, normalize: bool) -> jax.Array:
            out = self.module.apply(variables, ids, **given)
            vectors = out.pooled
            if pooling is not None:
                parts = [pool(out.tokens, out.mask, how) for how in pooling]
                vectors = jnp.concatenate(parts, axis=-1)
            return unit(vectors) if normalize else vectors.astype(jnp.float32)

        return jax.jit(apply, static_argnames=("pooling", "normalize"))


def checked_texts(texts: Any, name: str) -> list[str]:
    """A list of texts, checked.

    Raises:
      DataError: it is none, it is empty, or a text is no valid one.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence | np.ndarray):
        raise DataError(f"{name}: expected a list of texts, got {type(texts).__name__}.")
    texts = list(texts)
    if not texts:
        raise DataError(f"{name}: expected a list of texts, got an empty one.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{name}: number {number} is {type(text).__name__}, not a text.")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # the half of a surrogate pair
            raise DataError(f"{name}: number {number} is not valid Unicode ({error}).") from error
    return texts


def hashable(layers: Layers) -> Literal["all"] | tuple[int, ...]:
    """Asked-for layers as jit's static arguments take them."""
    return "all" if layers == "all" else tuple(int(layer) for layer in layers)


def same_shape(ids: np.ndarray, array: np.ndarray, name: str) -> np.ndarray:
    if array.shape != ids.shape:
        raise DataError(f"{name}: expected the shape of ids, {ids.shape}, got {array.shape}.")
    return array


def ids_below(array: np.ndarray, name: str, size: int, what: str) -> np.ndarray:
    """The array as int32, if it holds integers in [0, size)."""
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name}: expected integers, got {array.dtype}.")
    wrong = array[(array < 0) | (array >= size)]
    if wrong.size:
        raise DataError(f"{name}: {wrong[0]} is not in {what}, which goes from 0 to {size - 1}.")
    return array.astype(np.int32)
