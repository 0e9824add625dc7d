"""A config, resolved: every object that a run is made of, and nothing opened or allocated yet."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from encoders import loading, rules
from encoders.config import Durations, arguments, bind, build, construct, to_plain
from encoders.data import (
    PREPROCESSING,
    SOURCES,
    ImageTextPreprocessing,
    Pipeline,
    build_transforms,
)
from encoders.data.batcher import packer_of
from encoders.data.sources.buckets import in_buckets
from encoders.errors import ConfigError, DataError
from encoders.evaluation import EVALUATORS, FeatureExtractor
from encoders.models import MODELS
from encoders.objectives import OBJECTIVES
from encoders.objectives.base import Objective
from encoders.parallel import sharding
from encoders.parallel.mesh import batch_shards, local_rows, make_mesh, replicated
from encoders.training.optimizers import make_optimizer, read_section
from encoders.training.schedules import momentum
from encoders.training.sections import Sections
from encoders.training.state import TrainState
from encoders.training.step import Batch, Metrics, make_step, normalized


class Experiment:
    """All the objects of one run, built from a config and checked before anything is opened.

    Attributes:
      config: the config as plain dicts.
      sections: its typed top level.
      objective, preprocessing, transforms: what they say.
      mesh, compute_dtype: the hardware it will run on.

    Raises:
      ConfigError: anything in the config that is unknown, missing, mistyped or contradictory.
    """

    def __init__(self, config: Any, *, devices: list[jax.Device] | None = None):
        self.config = to_plain(config)
        self.sections = construct(Sections, self.config, "config")
        sections = self.sections
        self.mesh: Mesh = make_mesh(
            **arguments(_mesh_sizes, sections.hardware.mesh, "hardware.mesh"), devices=devices
        )
        self.preprocessing = build(PREPROCESSING, sections.preprocessing, "preprocessing")
        self.objective = build_objective(self.config, self.preprocessing)
        self.transforms = build_transforms(sections.data.transforms, self.preprocessing)
        self._packer = packer_of(self.transforms)
        if self._packer is not None and not isinstance(self.preprocessing, ImageTextPreprocessing):
            raise ConfigError(
                "data.transforms: images that share a row are read by contrast with texts alone; "
                "preprocessing.name must be 'image_text'."
            )
        self._open_source = bind(
            SOURCES, sections.data.source, "data.source", **self.preprocessing.for_sources
        )
        self._evaluators = {
            name: self._bind_evaluator(name, section)
            for name, section in sections.evaluators.items()
        }
        read_section(self.optimizer_section)
        self._check_batch()

    # --- what the config says -------------------------------------------------------------------

    def _check_batch(self) -> None:
        size, micro = self.sections.batch_size, self.sections.hardware.micro_batches
        shards, each = batch_shards(self.mesh), self._per_row
        parts = shards * micro * each
        if size < 1 or micro < 1 or size % parts:
            of = f" of rows of {each} images" if each > 1 else ""
            raise ConfigError(
                f"batch_size: {size} cannot be cut into {shards} device shards x {micro} "
                f"micro-batches{of}; the nearest that can is "
                f"{max(1, round(size / parts)) * parts}."
            )
        if micro > 1 and self.objective.whole_batch and not hasattr(self.objective, "embed"):
            raise ConfigError(
                f"hardware.micro_batches: {type(self.objective).__name__} compares the examples of "
                f"a whole batch, which {micro} parts would change; set it to 1, and model.remat to "
                "save memory."
            )

    @property
    def _per_row(self) -> int:
        return 1 if self._packer is None else self._packer.images

    @property
    def batch_rows(self) -> int:
        """Rows of a batch: its examples, or fewer where several are packed into a row."""
        return self.sections.batch_size // self._per_row

    def _bind_evaluator(self, name: str, section: Mapping) -> tuple[Callable, Mapping | None]:
        where = f"evaluators.{name}"
        fields = dict(section)
        every = fields.pop("every", None)
        if every is not None:  # checks the unit; the number of steps is known once data is open
            Durations(1, 1, 1).steps(every, f"{where}.every")
        context = {"preprocessing": self.preprocessing, "mesh": self.mesh, "label": name}
        return bind(EVALUATORS, fields, where, **context, directory=None, extractor=None), every

    def evaluators(self, directory: Any = None) -> dict[str, tuple[Any, int | None]]:
        """name -> (evaluator, every how many steps; None: only at the end); opens their data.

        Args:
          directory: where they leave pictures, or None.

        Raises:
          DataError: a data set is missing.
        """
        # One extractor for all: a kNN and a probe of the same features pass over the data once.
        shared = {
            "directory": directory,
            "extractor": FeatureExtractor(self.preprocessing, self.mesh),
        }
        found = {}
        for name, (make, every) in self._evaluators.items():
            if every is not None:
                every = max(1, self.durations.steps(every, f"evaluators.{name}.every"))
            fitting = {key: shared[key] for key in shared if key in make.keywords}
            found[name] = (make(**fitting), every)
        return found

    @property
    def compute_dtype(self) -> Any:
        if self.sections.hardware.compute_dtype is not None:
            return jnp.dtype(self.sections.hardware.compute_dtype)
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)

    # --- data and durations ---------------------------------------------------------------------

    @functools.cached_property
    def source(self) -> Any:
        """The training data, opened.

        Raises:
          DataError: it is missing, or has another size than the config says.
          ConfigError: it does not fit the objective.
        """
        source = self._open_source()
        expected = self.sections.data.examples_per_epoch
        if expected is not None and expected != len(source):
            raise DataError(
                f"data.source has {len(source)} examples, but data.examples_per_epoch says "
                f"{expected}; set it to None to take what is there."
            )
        self.objective.check_source(source)
        return source

    @functools.cached_property
    def durations(self) -> Durations:
        """Opens the data only where something lasts epochs and the config does not say how long
        one is.
        """
        sections = self.sections
        epoch = sections.data.examples_per_epoch
        if epoch is None and _mentions(self.config, "epochs"):
            epoch = len(self.source)
        durations = Durations(sections.batch_size, epoch)
        total = durations.steps(sections.duration, "duration")
        return dataclasses.replace(durations, total_steps=total)

    @property
    def total_steps(self) -> int:
        return self.durations.total_steps

    def pipeline(self) -> Pipeline:
        data = self.sections.data
        source = in_buckets(self.source, self.preprocessing, self.sections.batch_size)
        return Pipeline(
            source,
            self.transforms,
            self.sections.batch_size,
            self.sections.seed,
            rows=local_rows(self.mesh, self.sections.batch_size),
            threads=data.threads,
            processes=data.processes,
            max_corrupt_rate=data.max_corrupt_rate,
        )

    # --- state and step -------------------------------------------------------------------------

    def load_frozen_teacher(self) -> Any:
        """Variables of the frozen network that the objective learns from, or None."""
        if self._teacher_path is None:
            return None
        return jax.device_put(loading.read_variables(self._teacher_path), replicated(self.mesh))

    @property
    def _teacher_path(self) -> str | None:
        teacher = self.config["objective"].get("teacher")
        return teacher["path"] if isinstance(teacher, Mapping) else teacher

    def example_batch(self, rows: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the shapes and types that training will see; the longest."""
        batch = self.objective.example_batch(self.preprocessing, rows * self._per_row)
        return batch if self._packer is None else self._packer.example_rows(batch)

    def example_batches(self, rows: int) -> list[dict[str, np.ndarray]]:
        """An example batch of every length that there may be."""
        sizes = getattr(self.preprocessing, "bucket_samples", None)
        if sizes is None:
            return [self.example_batch(rows)]
        padded = dataclasses.replace(self.preprocessing, bucket_samples=None)
        return [
            self.objective.example_batch(dataclasses.replace(padded, max_samples=size), rows)
            for size in sizes
        ]

    def init_variables(self, key: jax.Array) -> Any:
        """The objective's variables, random; float32."""
        batch = normalized(
            self.preprocessing.normalize, self.example_batch(batch_shards(self.mesh))
        )
        params, corrupt, dropout = jax.random.split(key, 3)
        keys = {"params": params, "corrupt": corrupt, "dropout": dropout}
        return self.objective.init(keys, batch, train=True)

    @functools.cached_property
    def _init(self) -> Any:
        """Traced once, for the shapes and then for the arrays."""
        return jax.jit(self.init_variables)

    @functools.cached_property
    def _variable_shapes(self) -> Any:
        return self._init.eval_shape(jax.random.key(0))

    @functools.cached_property
    def param_shapes(self) -> Any:
        """Shapes of all parameters, without allocating one."""
        return self._variable_shapes["params"]

    @functools.cached_property
    def param_specs(self) -> Any:
        hardware = self.sections.hardware
        return sharding.parameter_specs(
            self.param_shapes, self.mesh, hardware.tensor_rules, hardware.fsdp_min_size
        )

    @property
    def optimizer_section(self) -> dict[str, Any]:
        """config.optimizer, with what the objective does not train among what is frozen."""
        section = dict(self.sections.optimizer)
        if self.objective.frozen:
            section["frozen"] = (*section.get("frozen", ()), *self.objective.frozen)
        return section

    @functools.cached_property
    def _optimizer(self) -> tuple[Any, Any]:
        return make_optimizer(
            self.optimizer_section, durations=self.durations, params=self.param_shapes
        )

    @property
    def optimizer(self) -> Any:
        return self._optimizer[0]

    @property
    def schedule(self) -> Any:
        return self._optimizer[1]

    def init_state(self, key: jax.Array) -> TrainState:
        """The state at step 0; pure, so that jit can create it sharded."""
        return self._first_state(self._init(key))

    def _first_state(self, variables: Any) -> TrainState:
        variables = dict(variables)
        params = variables.pop("params")
        variables.pop("teacher", None)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            stats=variables,
            opt_state=self.optimizer.init(params),
            ema=None if self.sections.ema is None else jax.tree.map(jnp.copy, params),
            teacher=self.first_teacher(params),
        )

    def first_teacher(self, params: Any) -> Any:
        """The momentum teacher at step 0: copies of the parameters, None elsewhere; or None."""
        if self.objective.momentum is None:
            return None
        where = f"{type(self.objective).__name__}.followed"
        return jax.tree.map(jnp.copy, rules.only(self.objective.followed, params, where=where))

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shape, dtype and sharding of every leaf of the state."""
        shapes = jax.eval_shape(self._first_state, self._variable_shapes)
        like = functools.partial(
            sharding.like_parameters, params=shapes.params, specs=self.param_specs
        )
        specs = TrainState(
            step=jax.sharding.PartitionSpec(),
            params=self.param_specs,
            stats=like(shapes.stats),
            opt_state=like(shapes.opt_state),
            ema=None if shapes.ema is None else self.param_specs,
            teacher=like(shapes.teacher),
        )
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            sharding.named(self.mesh, specs),
        )

    def create_state(self) -> TrainState:
        """The state at step 0, every array created where it will live."""
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        key = jax.random.fold_in(jax.random.key(self.sections.seed), 2**31 - 1)
        return jax.jit(self.init_state, out_shardings=places)(key)

    def step(self) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
        """The jitted training step; the old state's memory is reused for the new one."""
        places = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        if self._teacher_path is not None:
            places = places.replace(frozen_teacher=replicated(self.mesh))
        slow = self.objective.momentum
        step = make_step(
            self.objective,
            self.optimizer,
            self.schedule,
            seed=self.sections.seed,
            normalize=self.preprocessing.normalize,
            mesh=self.mesh,
            micro_batches=self.sections.hardware.micro_batches,
            compute_dtype=self.compute_dtype,
            ema=self.sections.ema,
            momentum=None if slow is None else momentum(slow, self.durations),
        )
        return jax.jit(step, donate_argnums=0, out_shardings=(places, replicated(self.mesh)))

    def metadata(self, step: int) -> dict[str, Any]:
        """What travels with the weights: how they were made, and what input they expect."""
        return {
            "config": self.config,
            "preprocessing": self.preprocessing.to_json(),
            "step": step,
        }

    def flops_per_example(self, sizes: Mapping[Any, float] | None = None) -> float:
        """FLOPs of one training example: forward, and twice that backward.

        Args:
          sizes: input size -> the share of examples that have it; None is the preprocessing's.
        """
        if sizes is not None:
            return sum(3.0 * share * self.objective.flops(size) for size, share in sizes.items())
        size = self.preprocessing.input_size
        return 3.0 * self.objective.flops(self._packer.input_size(size) if self._packer else size)


def build_objective(config: Mapping[str, Any], preprocessing: Any) -> Objective:
    """The objective of a config with its encoder, and with its teacher if it names one.

    A teacher is the path of its weights, or a section of that `path` and of what it is: its `model`
    and its `objective`.

    Raises:
      ConfigError: a field is unknown, missing or mistyped; the model encodes something else than
        is prepared; the vocabulary has more ids than the model.
      CheckpointError: the teacher's run is not there.
    """
    encoder = build(MODELS, config["model"], "model")
    if encoder.modality != preprocessing.modality:
        raise ConfigError(
            f"preprocessing.name: expected '{encoder.modality}', which model.name="
            f"'{config['model']['name']}' encodes, got what prepares '{preprocessing.modality}'."
        )
    if hasattr(preprocessing, "check"):
        preprocessing.check(encoder)
    context = dict(preprocessing.for_objectives)
    if (vocabulary := context.get("vocabulary")) and vocabulary.size > encoder.vocab_size:
        raise ConfigError(
            f"model.vocab_size: {encoder.vocab_size} is less than the {vocabulary.size} ids of "
            "preprocessing.vocabulary."
        )
    section = dict(config["objective"])
    teacher = section.pop("teacher", None)
    if teacher is not None:
        # A teacher whose sections stand in the config can be counted before its weights are there.
        other = {"preprocessing": None, **teacher} if isinstance(teacher, Mapping) else None
        other = loading.run_config(teacher) if other is None else other
        if other["objective"] is None:
            raise ConfigError(f"objective.teacher: {teacher} holds an encoder alone, no heads.")
        # Weights that say nothing of their input expect the student's.
        expects = preprocessing
        if other["preprocessing"] is not None:
            expects = build(PREPROCESSING, other["preprocessing"], "preprocessing")
        context["teacher"] = build_objective(other, expects)
    return build(OBJECTIVES, section, "objective", encoder=encoder, **context)


def _mentions(config: Any, unit: str) -> bool:
    """Whether any duration in a config is given in that unit."""
    if isinstance(config, Mapping):
        return {unit} == set(config) or any(_mentions(value, unit) for value in config.values())
    return isinstance(config, tuple) and any(_mentions(value, unit) for value in config)


def _mesh_sizes(
    dcn: int = 1, data: int = 1, fsdp: int = -1, tensor: int = 1, sequence: int = 1
) -> None:
    """The schema of hardware.mesh."""
