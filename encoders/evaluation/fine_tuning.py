"""Fine-tuning as GLUE, SQuAD and CoNLL are reported: several seeds at once, median and spread.

Every seed has its own head, order of examples and dropout; all of a chunk of seeds take a step
together, in one compiled function over a leading axis of parameters and batches. Batches are a
function of (seed, step), so a seed's result does not depend on the seeds beside it.

Fine-tuning a small data set fails in some runs and not in others (arXiv 2006.04884), which a single
number hides: hence the spread, and the number of runs that learned nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from encoders import rules
from encoders.data import eval_batches
from encoders.data.sources.base import epoch_order
from encoders.errors import ConfigError, DataError, nearest
from encoders.evaluation.base import (
    Evaluator,
    before_batch,
    encoder_inputs,
    place,
    put_whole,
)
from encoders.evaluation.features import Feature, layers_of, select
from encoders.evaluation.tasks import TASKS, Arrays, Task
from encoders.layers.dropout import Dropout
from encoders.layers.initializers import trunc_normal
from encoders.layers.linear import Linear
from encoders.parallel.mesh import BATCH_AXES, batch_shards
from encoders.parallel.sharding import batch_major_activations

logger = logging.getLogger(__name__)

_CHUNK = 8  # T is a multiple of this


class Head(nn.Module):
    """Dropout and one linear layer, on one vector per example or on every token."""

    outputs: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = Dropout(self.dropout)(x, train=train)
        return Linear(self.outputs, kernel_init=trunc_normal(0.02), name="scores")(x)


@dataclasses.dataclass(kw_only=True)
class FineTuning(Evaluator):
    """Trains the encoder and a new head on `train`, and scores it on `test`, for every seed.

    AdamW with a linear warm-up and a linear fall to 0, on all parameters. The encoder that is
    measured stays as it was.

    Metrics: the task's (see `tasks`), each as its median over seeds under its own name, and with
    '_min', '_max' and '_std'; 'chance', what the task's first metric is without looking at the
    input (always the most frequent class); and 'degenerate', how many runs are not more than two
    standard errors of the test set above it.

    Attributes:
      train: section of the source that is trained on.
      task: 'classification' (`label`), 'regression' (`score`), both of a text or of a pair of
        texts; 'span' (answers, from the source 'squad'); 'tags' (one for every word).
      seeds: how many runs.
      parallel: how many of them at once; each holds four times the parameters. None: all.
      epochs: passes over train.
      train_batch_size: examples per step of one run.
      lr, warmup, weight_decay, beta2, eps, clip: of AdamW; `warmup` is the part of the steps in
        which the rate rises, `weight_decay` is of kernels only, `clip` the largest norm of a
        gradient.
      layer_decay: multiplies the rate by layer_decay ** (depth + 1 - layer), see `layer_ids`.
      head_dropout: rate before the head.
      feature: what the head of a whole text sees: 'pooled'; 'mean' or 'max' of the final tokens, or
        the 'first' of them; or the number of a layer, whose tokens are averaged; or several of
        these, side by side.
    """

    train: Mapping[str, Any]
    task: Literal["classification", "regression", "span", "tags"] = "classification"
    seeds: int = 5
    parallel: int | None = None
    epochs: float = 3.0
    train_batch_size: int = 32
    lr: float = 3e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    beta2: float = 0.999
    eps: float = 1e-6
    clip: float = 1.0
    layer_decay: float | None = None
    head_dropout: float = 0.1
    feature: Feature = "pooled"

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"evaluators.{self.label}"
        if self.task not in TASKS:
            hint = nearest(self.task, TASKS)
            raise ConfigError(f"{where}.task: unknown task '{self.task}'.{hint}")
        numbers = (self.seeds, self.train_batch_size, self.parallel or 1)
        if min(numbers) < 1 or self.epochs <= 0 or self.lr <= 0 or not 0 <= self.warmup <= 1:
            raise ConfigError(
                f"{where}: expected seeds, parallel and train_batch_size of at least 1, epochs and "
                f"lr above 0 and warmup from 0 to 1, got {self.seeds}, {self.parallel}, "
                f"{self.train_batch_size}, {self.epochs}, {self.lr} and {self.warmup}."
            )
        self.train_source = self.open(self.train, "train")
        self._data: tuple[Task, Arrays, Arrays] | None = None
        self._compiled: tuple[Any, Any] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train_source), **super().sizes}

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        if self._data is None:
            self._data = self._read()
        task, train, test = self._data
        variables = place(variables, self.mesh)
        began, found = time.perf_counter(), []
        width = min(self.parallel or self.seeds, self.seeds)
        for first in range(0, self.seeds, width):
            # The last chunk is filled up, so that one compiled function serves all.
            chunk = np.minimum(np.arange(first, first + width), self.seeds - 1)
            predicted = self._fine_tune(module, variables, chunk)
            real = min(width, self.seeds - first)
            found += [task.score(one, test) for one in predicted[:real]]
        logger.info(
            "%s: %d runs of %d steps in %.1f s",
            self.label, self.seeds, self._steps(train), time.perf_counter() - began,
        )  # fmt: skip
        metric, chance, error = task.chance(test)
        level = chance + 2 * error
        result = {}
        for name in found[0]:
            values = [one[name] for one in found]
            result[name] = float(np.median(values))
            result |= {f"{name}_min": min(values), f"{name}_max": max(values)}
            result[f"{name}_std"] = float(np.std(values))
        result["chance"] = chance
        result["degenerate"] = float(sum(one[metric] <= level for one in found))
        return result

    # --- data -------------------------------------------------------------------------------------

    def _read(self) -> tuple[Task, Arrays, Arrays]:
        where = f"evaluators.{self.label}"
        task = TASKS[self.task].of(self.train_source, self.test_source, self.preprocessing, where)
        parts = []
        for source, name in ((self.train_source, "train"), (self.test_source, "test")):
            examples = task.examples(source)
            batches = [
                {k: v[batch["valid"]] for k, v in batch.items()}
                for batch in eval_batches(examples, task.transforms(), min(1024, len(examples)))
            ]
            arrays = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
            if "segments" not in arrays:
                raise ConfigError(f"{where}: fine-tuning here is of encoders of text.")
            if task.label not in arrays:
                raise DataError(f"{where}.{name}: its examples have no '{task.label}'.")
            parts.append(arrays)
        # Shorter than the encoder's input where no text needs all of it.
        used = np.any([(part["segments"] > 0).any(0) for part in parts], axis=0)
        length = int(np.flatnonzero(used)[-1]) + 1
        length = min(math.ceil(length / _CHUNK) * _CHUNK, parts[0]["ids"].shape[1])
        full = parts[0]["ids"].shape[1]
        train, test = (
            {k: v[:, :length] if v.ndim == 2 and v.shape[1] == full else v for k, v in p.items()}
            for p in parts
        )
        return task, train, test

    def _steps(self, train: Arrays) -> int:
        return max(1, round(self.epochs * len(train["row"]) / self.train_batch_size))

    # --- training ---------------------------------------------------------------------------------

    def _fine_tune(
        self, module: nn.Module, variables: Mapping[str, Any], seeds: np.ndarray
    ) -> np.ndarray:
        """Predictions [S, N, ...] for the test set, of one run for each seed [S]."""
        task, train, test = self._data
        if self._compiled is None or self._compiled[0] != module:
            self._compiled = module, _Program(self, module, task, self._steps(train))
        program = self._compiled[1]
        rest = {k: v for k, v in variables.items() if k != "params"}
        keys = put_whole(np.asarray(seeds, np.uint32), self.mesh, P())
        state = program.start(variables["params"], keys)
        size = self.train_batch_size
        for step in range(self._steps(train)):
            before_batch()
            positions = np.arange(step * size, (step + 1) * size)
            rows = np.stack(
                [epoch_order(positions, len(train["row"]), int(s), True) for s in seeds]
            )
            batch = {k: self._put(v[rows], axis=1) for k, v in train.items()}
            state = program.step(state, rest, batch, keys, np.int32(step))
        predicted = []
        for first in range(0, len(test["row"]), self.batch_size):
            before_batch()
            rows = np.arange(first, first + min(self.batch_size, len(test["row"])))
            rows = np.minimum(rows, len(test["row"]) - 1)
            batch = {k: self._put(v[rows], axis=0) for k, v in test.items()}
            real = min(self.batch_size, len(test["row"]) - first)
            found = program.predict(state[0], rest, batch)
            predicted.append(np.asarray(jax.device_get(found))[:, :real])
        return np.concatenate(predicted, axis=1)

    def _put(self, array: np.ndarray, axis: int) -> jax.Array:
        """A batch on the devices, rows split where they can be cut into as many parts."""
        if self.mesh is None or array.shape[axis] % batch_shards(self.mesh):
            return put_whole(array, self.mesh, P())
        return put_whole(array, self.mesh, P(*[None] * axis, BATCH_AXES))


class _Program:
    """What is compiled: the beginning of runs, a step of all of them, and their predictions.

    State is (params, moments) with a leading axis of runs; params are {'encoder', 'head'}.
    """

    def __init__(self, settings: FineTuning, module: nn.Module, task: Task, steps: int):
        self.settings, self.module, self.task, self.steps = settings, module, task, steps
        self.head = Head(task.outputs, settings.head_dropout)
        self.adam = optax.chain(
            optax.clip_by_global_norm(settings.clip),
            optax.scale_by_adam(b2=settings.beta2, eps=settings.eps),
        )
        # State is given back to be overwritten: runs hold it once.
        self.step = jax.jit(self._step, donate_argnums=0)
        self.predict = jax.jit(self._predict, out_shardings=self._whole)
        self._start: Any = None

    @property
    def _whole(self) -> Any:
        mesh = self.settings.mesh
        return None if mesh is None else NamedSharding(mesh, P())

    def start(self, params: Any, seeds: jax.Array) -> tuple:
        """State of runs that begin at an encoder's parameters, for seeds [S]."""
        if self._start is None:
            self._start = self._compile_start(params, seeds)
        return self._start(params, seeds)

    def _compile_start(self, params: Any, seeds: jax.Array) -> Any:
        width = self._width(params)

        def head(seed: jax.Array) -> Any:
            return self.head.init(jax.random.key(seed), jnp.zeros((1, width)))["params"]

        def begin(params: Any, seeds: jax.Array) -> tuple:
            encoder = jax.tree.map(
                lambda x: jnp.broadcast_to(x.astype(jnp.float32), (len(seeds), *x.shape)), params
            )
            made = {"encoder": encoder, "head": jax.vmap(head)(seeds)}
            return made, jax.vmap(self.adam.init)(made)

        if self.settings.mesh is None:
            return jax.jit(begin)
        # Each run's parameters and moments lie as the encoder's do.
        spread = {
            rules.path_string(path): NamedSharding(
                self.settings.mesh,
                P(None, *(x.sharding.spec if isinstance(x.sharding, NamedSharding) else ())),
            )
            for path, x in jax.tree_util.tree_flatten_with_path(params)[0]
        }

        def sharding(path: str, _: Any) -> NamedSharding:
            return spread.get(path.partition("encoder/")[2], self._whole)

        shapes = jax.eval_shape(begin, params, seeds)
        return jax.jit(begin, out_shardings=rules.map_with_path(sharding, shapes))

    def _width(self, params: Any) -> int:
        """D of what the head sees."""
        _, train, _ = self.settings._data
        batch = {k: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype) for k, v in train.items()}

        def seen(params: Any, batch: Any) -> jax.Array:
            return self._seen({"params": params}, batch, {}, train=False)

        return jax.eval_shape(seen, params, batch).shape[-1]

    def _seen(
        self, variables: Any, batch: Mapping[str, jax.Array], keys: Any, *, train: bool
    ) -> jax.Array:
        """[B, D] or [B, T, D], what the head sees."""
        feature = self.settings.feature
        layers = layers_of(feature)
        asked = {"layers": layers} if layers else {}
        inputs, named = encoder_inputs(self.module, self.settings.preprocessing, batch)
        encoded = self.module.apply(variables, *inputs, **named, **asked, train=train, rngs=keys)
        return encoded.tokens if self.task.per_token else select(encoded, feature)

    def _outputs(
        self, params: Any, rest: Any, batch: Any, key: jax.Array | None = None
    ) -> jax.Array:
        """float32 outputs of the head for a batch; with a key, in training."""
        dtype, train = self.settings.compute_dtype, key is not None
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        keys = ({}, {})
        if train:
            keys = [{"dropout": one} for one in jax.random.split(key)]
        with _pinned(self.settings.mesh, len(batch["row"])):
            variables = {"params": params["encoder"], **rest}
            seen = self._seen(variables, batch, keys[0], train=train).astype(dtype)
            scores = self.head.apply({"params": params["head"]}, seen, train=train, rngs=keys[1])
        return scores.astype(jnp.float32)

    def _step(self, state: tuple, rest: Any, batch: Any, seeds: jax.Array, step: Any) -> tuple:
        rate = self.settings.lr * self._shape(step)

        def one(params: Any, moments: Any, batch: Any, seed: jax.Array) -> tuple:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), step)

            def loss(params: Any) -> jax.Array:
                return self.task.loss(self._outputs(params, rest, batch, key), batch)

            gradient = jax.grad(loss)(params)
            updates, moments = self.adam.update(gradient, moments)
            rates, decays = self._multipliers(params)
            params = jax.tree.map(
                lambda p, u, r, d: p - rate * r * (u + d * p), params, updates, rates, decays
            )
            return params, moments

        return jax.vmap(one)(*state, batch, seeds)

    def _predict(self, params: Any, rest: Any, batch: Any) -> jax.Array:
        def one(params: Any) -> jax.Array:
            return self.task.predict(self._outputs(params, rest, batch), batch)

        return jax.vmap(one)(params)

    def _shape(self, step: jax.Array) -> jax.Array:
        """The learning rate over its peak: up from the first step on, then down to 0."""
        up = round(self.settings.warmup * self.steps)
        rise = (step + 1) / (up + 1)
        return jnp.minimum(rise, (self.steps - step) / max(self.steps - up, 1))

    def _multipliers(self, params: Any) -> tuple[Any, Any]:
        """Of the rate and of the decay, for each array; for stacked layers one per layer."""
        names = {}
        rules.map_with_path(
            lambda path, x: names.update({path: rules.layer_names(path, x) or (path,)}), params
        )
        ids = rules.layer_ids([name for some in names.values() for name in some])
        settings = self.settings

        def rate(path: str, x: jax.Array) -> Any:
            decay = 1.0 if settings.layer_decay is None else settings.layer_decay
            factors = []
            for name in names[path]:
                layer, top = ids[name]
                factors.append(1.0 if name.startswith("head/") else decay ** (top - layer))
            if len(factors) == 1:
                return factors[0]
            return np.asarray(factors, np.float32).reshape(-1, *[1] * (x.ndim - 1))

        def decay(path: str, _: jax.Array) -> float:
            return settings.weight_decay if path.rpartition("/")[2] == "kernel" else 0.0

        return rules.map_with_path(rate, params), rules.map_with_path(decay, params)


def _pinned(mesh: Any, rows: int) -> Any:
    return contextlib.nullcontext() if mesh is None else batch_major_activations(mesh, rows)
