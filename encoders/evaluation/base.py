"""What every evaluator is, and how evaluation batches reach the mesh."""

from __future__ import annotations

import abc
import contextlib
import contextvars
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from encoders.config import build
from encoders.data import SOURCES, Preprocessing, Source, eval_batches
from encoders.data.prefetch import prefetch
from encoders.data.preprocessing import NORMALIZED
from encoders.parallel.mesh import batch_shards, local_rows, replicated, to_device
from encoders.parallel.sharding import batch_major_activations

DType = Literal["float32", "bfloat16"]

# Called before every evaluation batch: the loop's way to leave an evaluation in the middle.
_between_batches: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar(
    "between_batches", default=lambda: None
)


@contextlib.contextmanager
def between_batches(call: Callable[[], None]) -> Iterator[None]:
    """While inside, `call` is called before every batch of every evaluator; it may raise."""
    token = _between_batches.set(call)
    try:
        yield
    finally:
        _between_batches.reset(token)


def before_batch() -> None:
    """What an evaluator calls that makes its own batches; it may raise."""
    _between_batches.get()()


@dataclasses.dataclass(kw_only=True)
class Evaluator(abc.ABC):
    """A measurement of a network on a test set.

    The same object serves evaluation during training, `tools.evaluate` and notebooks. It knows no
    family by name: `subject` says whether it is handed the encoder or the whole objective.

    Attributes:
      test: section of the source that is measured on, built through `encoders.data.SOURCES`.
      batch_size: examples per global batch, rounded up to what the mesh divides; changes no result.
      compute_dtype: dtype of parameters and images in the forward pass; results are float32.
      label: names the evaluator in errors and in the names of its pictures.
      preprocessing: what the network expects of its input (supplied by the experiment).
      mesh: devices to run on, or None for the default device (supplied).
      directory: run directory for pictures, or None for none (supplied).
    """

    subject: ClassVar[Literal["encoder", "objective"]] = "encoder"

    test: Mapping[str, Any]
    preprocessing: Preprocessing
    mesh: Mesh | None = None
    directory: str | pathlib.Path | None = None
    batch_size: int = 256
    compute_dtype: DType = "float32"
    label: str = ""

    def __post_init__(self) -> None:
        self.label = self.label or type(self).__name__
        self.test_source = self.open(self.test, "test")

    @property
    def sizes(self) -> dict[str, int]:
        """How many examples each of its sources has."""
        return {"test": len(self.test_source)}

    @abc.abstractmethod
    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        """Measures `module` with `variables`.

        Args:
          module: the encoder or the objective, as `subject` says.
          variables: its collections ('params', ...); arrays stay sharded as they are.
          step: training step, for the names of pictures.

        Returns:
          metric name -> value.
        """

    def open(self, section: Mapping[str, Any], field: str) -> Source:
        """The source of a section.

        Raises:
          ConfigError, DataError: the section is wrong, or the data set is not there.
        """
        where = f"evaluators.{self.label}.{field}"
        return build(SOURCES, section, where, **self.preprocessing.for_sources)


def batches(
    source: Source, preprocessing: Preprocessing, batch_size: int, mesh: Mesh | None
) -> Iterator[dict[str, jax.Array]]:
    """Every example of a source once, in order, as global arrays; a thread prepares them ahead.

    Yields:
      the modality's fields ('image' uint8 [B, H, W, C]; 'ids' and 'segments' int32 [B, T]), what
      the source has of 'label' and other numbers, 'row' int32 [B] and 'valid' bool [B], split over
      the mesh's batch axes; rows that pad the last batch are not valid.
    """
    rows = None
    if mesh is not None:
        shards = batch_shards(mesh)
        batch_size = math.ceil(batch_size / shards) * shards
        rows = local_rows(mesh, batch_size)
    host = eval_batches(source, preprocessing.eval_transforms(), batch_size, rows=rows)
    move = jax.device_put if mesh is None else functools.partial(to_device, mesh=mesh)

    def numeric(batch: Mapping[str, np.ndarray]) -> Any:
        return move({k: v for k, v in batch.items() if v.dtype.kind in "biuf"})

    with prefetch(host, numeric) as ahead:
        for batch in ahead:
            before_batch()
            yield batch


def on_mesh(
    function: Callable[..., Any], preprocessing: Preprocessing, mesh: Mesh | None, dtype: DType
) -> Callable[..., Any]:
    """Jits `function(variables, batch)`: inputs normalised and cast, activations split by row.

    Args:
      function: pure; gets variables in `dtype` and a batch whose 'image' is normalised, in `dtype`,
        or whose 'waveform' is, in float32, which its features are computed in; token ids and all
        other fields are as they were.
      preprocessing: normalises images and waveforms, on device.
      mesh: where the arguments live; outputs come back whole on every device.
      dtype: of the forward pass.
    """

    def cast(x: jax.Array) -> jax.Array:
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def forward(variables: Any, batch: Mapping[str, jax.Array]) -> Any:
        batch = {k: preprocessing.normalize(v) if k in NORMALIZED else v for k, v in batch.items()}
        batch = {k: cast(v) if k == "image" else v for k, v in batch.items()}
        variables = jax.tree.map(cast, variables)
        if mesh is None:
            return function(variables, batch)
        with batch_major_activations(mesh, batch["row"].shape[0]):
            return function(variables, batch)

    return jax.jit(forward, out_shardings=None if mesh is None else replicated(mesh))


def encoder_inputs(
    module: nn.Module, preprocessing: Preprocessing, batch: Mapping[str, jax.Array]
) -> tuple[tuple, dict[str, Any]]:
    """The arguments (positional, by name) that `module` is called with for a batch.

    Token types go to encoders that have some: one source of pairs serves BERT and RoBERTa.
    """
    inputs, named = preprocessing.encoder_inputs(batch)
    if not getattr(module, "num_token_types", 1):
        named.pop("token_types", None)
    return inputs, named


def place(variables: Any, mesh: Mesh | None) -> Any:
    """Variables on the mesh: what lives on all of it stays as it is, the rest is replicated."""
    if mesh is None:
        return jax.tree.map(
            lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), variables
        )
    devices = set(mesh.devices.flat)

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding.device_set == devices:
            return x
        return put_whole(np.asarray(x), mesh, P())

    return jax.tree.map(put, variables)


def put_whole(array: np.ndarray, mesh: Mesh | None, spec: P) -> jax.Array:
    """A host array that every process holds whole, as one global array split by `spec`."""
    if mesh is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(
        array.shape, NamedSharding(mesh, spec), lambda index: array[index]
    )


def fingerprint(section: Mapping[str, Any]) -> str:
    """A section as text that equal sections share."""
    return json.dumps(section, sort_keys=True)
