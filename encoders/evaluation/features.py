"""Features of a frozen network: the input of every probe, extracted once and shared.

One pass over a source gives [N, D] float32 features, of one or several layers, and [N] labels on
the host. The evaluators of a run share an extractor, so that a kNN and a linear probe of one
checkpoint on the same data cost one pass, and one compilation.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from encoders.data import ImageTextPreprocessing, Preprocessing, Source
from encoders.data.preprocessing import NORMALIZED
from encoders.errors import ConfigError, DataError
from encoders.evaluation.base import DType, batches, encoder_inputs, on_mesh, place
from encoders.evaluation.frames import frame_rate, frames_at, frames_with_mask, moments
from encoders.layers.pooling import masked_mean, pool
from encoders.layers.spectrogram import hubert_mfcc
from encoders.types import Encoded

logger = logging.getLogger(__name__)

_One = Literal["pooled", "mean", "max", "first"] | int  # a number is that of a layer
Feature = _One | tuple[_One, ...]  # several are put side by side
EVERY_LAYER = "weighted_sum"
MAX_PIXELS = 32 * 32


class Labelled(NamedTuple):
    """Features of a data set.

    Attributes:
      features: [N, D] float32; of every layer [N, L, D].
      labels: [N] int32; -1 where the source has none.
      rows: [N] int32, the examples' numbers in the source; corrupt ones are missing.
      one_scale: whether columns mean something relative to each other, as weighted counts do, so
        that probes must not scale each by itself.
    """

    features: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | None = None
    one_scale: bool = False


@dataclasses.dataclass(frozen=True)
class Split:
    """A source and how to go through it.

    Attributes:
      source: the examples.
      name: text that two splits share if their examples are the same.
      batch_size: examples per global batch.
      dtype: of the forward pass.
      target: the field of its examples that becomes the label.
      frames: if above 0, of each example so many frames are the examples, see `frames.moments`.
    """

    source: Source
    name: str
    batch_size: int
    dtype: DType = "float32"
    target: str = "label"
    frames: int = 0


def select(encoded: Encoded, feature: Feature | Literal["weighted_sum"]) -> jax.Array:
    """One float32 vector per example, [B, D]; of every layer [B, L, D].

    Args:
      encoded: output of an encoder.
      feature: 'pooled'; 'mean' or 'max' of the final tokens, or the 'first' of them; or a layer
        whose hidden tokens are averaged; or several of these, side by side; or 'weighted_sum', the
        means of every layer's hidden tokens.
        Means and maxima leave out prefix tokens (cls, registers) and padding.

    Raises:
      ConfigError: 'pooled' of an encoder that does not pool.
    """
    if isinstance(feature, tuple):
        return jnp.concatenate([select(encoded, one) for one in feature], -1)
    if feature == EVERY_LAYER:
        return jnp.stack([select(encoded, layer) for layer in sorted(encoded.hidden)], 1)
    if feature == "pooled":
        if encoded.pooled is None:
            raise ConfigError("feature: this encoder does not pool (pool='none'); use 'mean'.")
        return encoded.pooled.astype(jnp.float32)
    if feature == "first":
        return encoded.tokens[:, 0].astype(jnp.float32)
    tokens, mask = frames_with_mask(encoded, feature if isinstance(feature, int) else "tokens")
    return pool(tokens, mask, "max" if feature == "max" else "mean")


def layers_of(feature: Any) -> tuple[int, ...]:
    """The layers by number that features are made of, from the lowest up."""
    if isinstance(feature, tuple):
        return tuple(sorted({layer for one in feature for layer in layers_of(one)}))
    return (feature,) if isinstance(feature, int) else ()


def pixels(images: jax.Array) -> jax.Array:
    """Raw pixels [B, D] of images [B, H, W, C], shrunk to at most 1024 per channel.

    Larger pictures would make D so large that no probe could be fitted to it.
    """
    height, width = images.shape[1:3]
    if height * width > MAX_PIXELS:
        scale = math.sqrt(MAX_PIXELS / (height * width))
        small = max(1, int(height * scale)), max(1, int(width * scale))
        shape = (images.shape[0], *small, images.shape[3])
        images = jax.image.resize(images, shape, "linear", antialias=True)
    return images.reshape(images.shape[0], -1).astype(jnp.float32)


class _Entry(NamedTuple):
    """Features that are remembered, and the arrays that they were made with."""

    key: tuple
    references: list[weakref.ref]
    found: tuple[Labelled, ...]

    @property
    def nbytes(self) -> int:
        return sum(labelled.features.nbytes for labelled in self.found)


class FeatureExtractor:
    """Extracts features on the mesh, and remembers the last ones.

    Attributes:
      preprocessing: decodes and normalises.
      mesh: devices to run on, or None for the default one.
      cache_bytes: features kept on the host for other evaluators; larger sets are never kept.
    """

    def __init__(
        self, preprocessing: Preprocessing, mesh: Mesh | None = None, *, cache_bytes: int = 2**30
    ):
        self.preprocessing = preprocessing
        self.mesh = mesh
        self.cache_bytes = cache_bytes
        self._parts: dict[str, FeatureExtractor] = {}
        self._compiled: list[tuple[tuple, Callable]] = []
        self._cache: collections.deque[_Entry] = collections.deque()

    def part(self, name: str) -> FeatureExtractor:
        """The extractor for the inputs of one of two towers, 'image' or 'text'."""
        if name not in self._parts:
            preprocessing = getattr(self.preprocessing, name)
            self._parts[name] = FeatureExtractor(
                preprocessing, self.mesh, cache_bytes=self.cache_bytes
            )
        return self._parts[name]

    def encoder(
        self, module: nn.Module, variables: Mapping[str, Any], split: Split, feature: Feature
    ) -> Labelled:
        """Features of an encoder with given weights."""
        return self.encoder_features(module, variables, split, (feature,))[0]

    def encoder_features(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        split: Split,
        features: tuple[Feature, ...],
    ) -> tuple[Labelled, ...]:
        """Several features of an encoder with given weights, in one pass over the data.

        Of two towers they are those of the image tower.
        """
        if _is_pair(module):
            tower = {kind: of["image"] for kind, of in variables.items() if "image" in of}
            return self.part("image").encoder_features(module.image, tower, split, features)
        return self._extract(("encoder", module, features), variables, split, keep=variables)

    def random(
        self,
        module: nn.Module,
        like: Mapping[str, Any],
        split: Split,
        feature: Feature,
        seed: int,
    ) -> Labelled:
        """Features of the same architecture with random weights, placed as `like` is."""
        if _is_pair(module):
            tower = {"params": like["params"]["image"]}
            return self.part("image").random(module.image, tower, split, feature, seed)

        def variables() -> Any:
            return self._random_variables(module, like, seed)

        which = "encoder", module, (feature,)
        return self._extract(which, variables, split, keep=("random", seed))[0]

    def pixels(self, split: Split) -> Labelled:
        """Raw pixels as features; see `pixels`."""
        if isinstance(self.preprocessing, ImageTextPreprocessing):
            return self.part("image").pixels(split)
        return self._extract(("pixels", None, ()), {}, split, keep=("pixels",))[0]

    def ids(self, split: Split) -> Labelled:
        """Token ids [N, T] int32 as features, -1 for padding and special tokens."""
        if isinstance(self.preprocessing, ImageTextPreprocessing):
            return self.part("text").ids(split)
        return self._extract(("ids", None, ()), {}, split, keep=("ids",))[0]

    def cepstra(self, split: Split) -> Labelled:
        """Cepstra of a clip, averaged over it, or of its frames; see `hubert_mfcc`."""
        return self._extract(("mfcc", None, ()), {}, split, keep=("mfcc",))[0]

    # --- how ----------------------------------------------------------------------------------

    def _extract(
        self, which: tuple, variables: Any, split: Split, keep: Any
    ) -> tuple[Labelled, ...]:
        leaves = jax.tree.leaves(keep) if isinstance(keep, Mapping) else []
        how = (*which, split.dtype, split.target, split.frames)
        key = (*how, split.name, None if leaves else keep)
        found = self._recall(key, leaves)
        if found is None:
            began = time.perf_counter()
            variables = variables() if callable(variables) else place(variables, self.mesh)
            make = functools.partial(self._compile, which, split)
            found = self._run(self._once(how, make), variables, split)
            seconds = time.perf_counter() - began
            name = which[0] if leaves else keep[0]
            numbers = sum(labelled.features[0].size for labelled in found)
            examples = len(found[0].labels)
            logger.info("%d %s features of %d numbers in %.1f s", examples, name, numbers, seconds)
            self._remember(key, leaves, found)
        return found

    def _compile(self, which: tuple, split: Split) -> Callable:
        """The jitted extraction."""
        kind, module, features = which

        def encode(variables: Any, batch: Mapping[str, jax.Array]) -> Encoded:
            layers = "all" if EVERY_LAYER in features else layers_of(features)
            asked = {"layers": layers} if layers else {}
            inputs, named = encoder_inputs(module, self.preprocessing, batch)
            return module.apply(variables, *inputs, **named, **asked)

        def heard(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            waveform, rate = _field(batch, "waveform", kind), self.preprocessing.sample_rate
            mask = self.preprocessing.encoder_inputs(batch)[1]["mask"]
            return hubert_mfcc(waveform, mask, sample_rate=rate)

        def extract(variables: Any, batch: Mapping[str, jax.Array]) -> tuple:
            if kind == "encoder":
                encoded = encode(variables, batch)
                vectors = tuple(select(encoded, feature) for feature in features)
            elif kind == "pixels":
                vectors = (pixels(_field(batch, "image", kind)),)
            elif kind == "mfcc":
                vectors = (masked_mean(*heard(batch)),)
            else:
                ids = _field(batch, "ids", "bag_of_words")
                special = jnp.asarray(self.preprocessing.special.special_ids)
                word = (batch["segments"] > 0) & ~jnp.isin(ids, special)
                vectors = (jnp.where(word, ids, -1),)
            labels = batch.get(split.target, jnp.full_like(batch["row"], -1))
            return vectors, labels, batch["row"], batch["valid"]

        def extract_frames(variables: Any, batch: Mapping[str, jax.Array]) -> tuple:
            rates = self.preprocessing.sample_rate, self.preprocessing.units_per_second
            at = moments(batch[split.target], split.frames, rates[1])
            if kind == "mfcc":
                vectors = (frames_at(*heard(batch), at.seconds, 100.0),)
            else:
                encoded, rate = encode(variables, batch), frame_rate(module, rates[0])
                vectors = tuple(
                    frames_at(*frames_with_mask(encoded, feature), at.seconds, rate)
                    for feature in features
                )
            vectors = tuple(x.reshape(-1, *x.shape[2:]) for x in vectors)
            rows = jnp.repeat(batch["row"], split.frames)
            used = at.used & batch["valid"][:, None]
            return vectors, at.units.reshape(-1), rows, used.reshape(-1)

        function = extract_frames if split.frames else extract
        return on_mesh(function, self.preprocessing, self.mesh, split.dtype)

    def _once(self, key: tuple, make: Callable[[], Callable]) -> Callable:
        """What `make` made for an equal key before; modules compare by their fields."""
        for known, function in self._compiled:
            if known == key:
                return function
        function = make()
        self._compiled.append((key, function))
        return function

    def _run(self, function: Callable, variables: Any, split: Split) -> tuple[Labelled, ...]:
        pending: collections.deque = collections.deque()
        parts: list[tuple[np.ndarray, ...]] = []

        def collect() -> None:
            vectors, labels, rows, valid = jax.device_get(pending.popleft())
            if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
                raise DataError(
                    f"probes need one class per example, an integer; these labels are "
                    f"{labels.dtype} {list(labels.shape[1:])}."
                )
            labels = labels.astype(np.int32)
            parts.append(tuple(x[valid] for x in (labels, rows, *vectors)))

        for batch in batches(split.source, self.preprocessing, split.batch_size, self.mesh):
            pending.append(function(variables, batch))
            if len(pending) > 2:  # the device works on the next ones while this one is copied
                collect()
        while pending:
            collect()
        labels, rows, *vectors = map(np.concatenate, zip(*parts, strict=True))
        return tuple(Labelled(x, labels, rows) for x in vectors)

    def _random_variables(self, module: nn.Module, like: Mapping[str, Any], seed: int) -> Any:
        example = self.preprocessing.example_batch(1)
        for name in NORMALIZED & example.keys():
            example[name] = self.preprocessing.normalize(example[name])

        def init(key: jax.Array) -> Any:
            batch = jax.tree.map(jnp.asarray, example)
            inputs, named = encoder_inputs(module, self.preprocessing, batch)
            return module.init({"params": key}, *inputs, **named)

        def make() -> Callable:
            described = jax.eval_shape(init, jax.random.key(0)), place(like, self.mesh)
            shapes, names = zip(*(jax.tree.flatten(tree) for tree in described), strict=True)
            if names[0] == names[1] and all(
                a.shape == b.shape for a, b in zip(*shapes, strict=True)
            ):
                return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, described[1]))
            return lambda key: place(jax.device_get(jax.jit(init)(key)), self.mesh)

        return self._once(("random", module), make)(jax.random.key(seed))

    # --- memory -------------------------------------------------------------------------------

    def _recall(self, key: tuple, leaves: list[Any]) -> tuple[Labelled, ...] | None:
        for entry in self._cache:
            same = len(entry.references) == len(leaves) and all(
                reference() is leaf
                for reference, leaf in zip(entry.references, leaves, strict=True)
            )
            if same and entry.key == key:
                return entry.found
        return None

    def _remember(self, key: tuple, leaves: list[Any], found: tuple[Labelled, ...]) -> None:
        """Keeps features as long as the very arrays they were made with are alive."""
        alive = [
            entry
            for entry in self._cache
            if all(reference() is not None for reference in entry.references)
        ]
        self._cache = collections.deque(alive)
        new = _Entry(key, [weakref.ref(leaf) for leaf in leaves], found)
        if new.nbytes > self.cache_bytes:
            return
        self._cache.append(new)
        while sum(entry.nbytes for entry in self._cache) > self.cache_bytes:
            self._cache.popleft()


def _is_pair(module: Any) -> bool:
    return getattr(module, "modality", None) == "image_text"


def _field(batch: Mapping[str, jax.Array], field: str, baseline: str) -> jax.Array:
    if field not in batch:
        raise ConfigError(
            f"baselines: '{baseline}' needs '{field}', which this data does not have."
        )
    return batch[field]
