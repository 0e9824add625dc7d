"""Optimizers from a config section: optax's algorithms, and what papers add to them by path.

One update of a parameter p with gradient g, learning-rate multiplier m and decay multiplier d:

    u = precondition(clip(g))
    p <- p - lr(step) * m * (u + weight_decay * d * p)          decay_convention='lr'
    p <- p - lr(step) * m * u - lr(step)/lr * weight_decay * d * p        'independent'

'lr' is PyTorch's AdamW, and what nearly all papers mean. 'independent' is Loshchilov & Hutter's
(arXiv 1711.05101, algorithm 2) and big_vision's: the decay follows the schedule's shape, but
neither its peak nor the multipliers. The same number is 1/lr times stronger there: 1e-4 at a peak
of 1e-3 is 0.1 in PyTorch's terms.

Scanned layers are stored stacked on axis 0, and nothing here may depend on that: rules see the
layers of `encoder/blocks/...` under their unrolled names `encoder/blocks_0/...`, multipliers hold
per layer, and whatever looks at an array as a whole (trust ratios, factored moments,
orthogonalisation) looks at one layer's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from encoders import rules
from encoders.config import Durations, bind, build
from encoders.errors import ConfigError
from encoders.rules import Rules, layer_ids
from encoders.training.adam import scale_by_adam, scale_by_stable_adam
from encoders.training.layerwise import (
    Leaf,
    describe,
    layerwise,
    match_layers,
    per_layer,
)
from encoders.training.schedules import SCHEDULES

# Weights of products decay; biases, norm scales, LayerScale, tokens, probes and positions do not.
DECAY_RULES: Rules = ((r"(.*/)?kernel", 1.0),)

Dtype = Literal["float32", "bfloat16"]


def make_optimizer(
    section: Any, *, durations: Durations, params: Any, where: str = "optimizer"
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the optimizer that a config section describes.

    Args:
      section: `name` from OPTIMIZERS, and that class's fields.
      durations: resolves the schedule's durations to steps.
      params: the parameter tree, or its ShapeDtypeStructs.
      where: the section's path in the config, named in errors.

    Returns:
      The transformation (no `apply_if_finite`, no accumulation: the step does both), and the
      learning rate as a function of the step, for logs.

    Raises:
      ConfigError: an unknown field, a rule that matches nothing, a duration that does not fit.
    """
    optimizer = read_section(section, where)
    schedule = build(
        SCHEDULES, optimizer.schedule, f"{where}.schedule", peak=optimizer.lr, durations=durations
    )
    return optimizer.transformation(params, schedule, where), schedule


def read_section(section: Any, where: str = "optimizer") -> Optimizer:
    """The optimizer of a section, before its parameters and the length of the run are known.

    Raises:
      ConfigError: an unknown, missing or mistyped field, also of the schedule; a number out of
        range.
    """
    optimizer = build(OPTIMIZERS, section, where)
    optimizer.check(where)
    context = {"peak": optimizer.lr, "durations": None}
    bind(SCHEDULES, optimizer.schedule, f"{where}.schedule", **context)
    return optimizer


# --- what all optimizers share --------------------------------------------------------------------


class ScheduleState(NamedTuple):
    """count: int32 scalar, updates so far."""

    count: jax.Array


class Treatment(NamedTuple):
    """What the rules make of one array: `rate` multiplies lr, `decay` multiplies weight_decay.

    Both are one number, or one per layer of a stack, shaped to broadcast.
    """

    leaf: Leaf
    rate: float | np.ndarray
    decay: float | np.ndarray
    frozen: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Fields that every optimizer has.

    Attributes:
      lr: the peak learning rate.
      schedule: section of `schedules.SCHEDULES`.
      weight_decay: strength, see `decay_convention`.
      decay_convention: what the decay is multiplied by (module docstring).
      decay_rules: (path regex, multiplier of weight_decay); no rule, no decay. By default kernels
        decay; biases, norm scales, LayerScale, class, register, mask tokens, positions do not.
      lr_rules: (path regex, multiplier of lr); 1 without a rule.
      layer_decay: multiplies lr by layer_decay ** (depth + 1 - layer id), see `layer_ids`.
      frozen: path regexes of parameters without update, state, or share in the clip norm.
      clip: the largest global norm of the gradient, over all that is trained; None: no clipping.

    Layers are called blocks_0, blocks_1, ... in all regexes, scanned or not.
    """

    lr: float
    schedule: Mapping[str, Any]
    weight_decay: float = 0.0
    decay_convention: Literal["lr", "independent"] = "lr"
    decay_rules: Rules = DECAY_RULES
    lr_rules: Rules = ()
    layer_decay: float | None = None
    frozen: Sequence[str] = ()
    clip: float | None = None

    def precondition(
        self, leaves: Mapping[str, Leaf], decay: Mapping[str, Any]
    ) -> optax.GradientTransformation:
        """The algorithm itself: gradient -> direction, before learning rate and decay.

        Args:
          leaves: path -> array, of all that is trained.
          decay: path -> multiplier of the weight decay (0: the array does not decay).
        """
        raise NotImplementedError

    def decays_itself(self) -> bool:
        """True if `precondition` adds the weight decay, which must precede a trust ratio."""
        return False

    def treatments(self, params: Any, where: str = "optimizer") -> dict[str, Treatment]:
        """What the rules make of every array of a parameter tree, by path.

        Raises:
          ConfigError: a rule that matches nothing.
        """
        every = [
            describe(path, array)
            for path, array in zip(rules.leaf_paths(params), jax.tree.leaves(params), strict=True)
        ]
        frozen = self._frozen(every, where)
        rates = match_layers(self.lr_rules, every, f"{where}.lr_rules", 1.0)
        if self.layer_decay is not None:
            ids = layer_ids([name for leaf in every for name in leaf.names])
            rates = [
                [
                    rate * self.layer_decay ** (ids[name][1] - ids[name][0])
                    for rate, name in zip(values, leaf.names, strict=True)
                ]
                for values, leaf in zip(rates, every, strict=True)
            ]
        decays = match_layers(self.decay_rules, every, f"{where}.decay_rules", 0.0)
        return {
            leaf.path: Treatment(
                leaf, per_layer(leaf, rate), per_layer(leaf, decay), leaf.path in frozen
            )
            for leaf, rate, decay in zip(every, rates, decays, strict=True)
        }

    def transformation(
        self, params: Any, schedule: optax.Schedule, where: str = "optimizer"
    ) -> optax.GradientTransformation:
        """The whole update for this parameter tree."""
        treatments = self.treatments(params, where)
        rate = {path: treated.rate for path, treated in treatments.items()}
        decay = {path: treated.decay for path, treated in treatments.items()}
        frozen = {path for path, treated in treatments.items() if treated.frozen}
        leaves = {path: t.leaf for path, t in treatments.items() if path not in frozen}

        steps = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        steps += [
            self.precondition(leaves, decay),
            self._descend(schedule, rate, decay),
        ]
        train = optax.chain(*steps)
        if not frozen:
            return train

        def label(path: str, _: Any) -> str:
            return "frozen" if path in frozen else "trained"

        return optax.partition(
            {"trained": train, "frozen": optax.set_to_zero()},
            functools.partial(rules.map_with_path, label),
        )

    def check(self, where: str) -> None:
        """Raises a ConfigError for a number that is out of range."""
        positive = {"lr": self.lr, "clip": self.clip, "layer_decay": self.layer_decay}
        for field, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{where}.{field}: expected a number above 0, got {value!r}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"{where}.weight_decay: expected a number from 0, got {self.weight_decay!r}."
            )
        for field in ("decay_rules", "lr_rules"):
            for regex, value in getattr(self, field):
                if not isinstance(value, int | float):
                    raise ConfigError(
                        f"{where}.{field}: '{regex}' must map to a number, got {value!r}."
                    )
        for field in ("b1", "b2", "momentum"):
            value = getattr(self, field, 0.0)
            if not 0 <= value < 1:
                raise ConfigError(f"{where}.{field}: expected a number from 0 to 1, got {value!r}.")

    def _frozen(self, leaves: Sequence[Leaf], where: str) -> set[str]:
        table = [(regex, True) for regex in self.frozen]
        frozen = set()
        matched = match_layers(table, leaves, f"{where}.frozen", False)
        for leaf, hit in zip(leaves, matched, strict=True):
            if any(hit) and not all(hit):
                raise ConfigError(
                    f"{where}.frozen: '{leaf.path}' holds all layers in one array, and only some "
                    f"({leaf.names[hit.index(True)]}) are to be frozen; set model.scan=False."
                )
            if all(hit):
                frozen.add(leaf.path)
        if len(frozen) == len(leaves):
            raise ConfigError(f"{where}.frozen: nothing is left to train.")
        return frozen

    def _descend(
        self, schedule: optax.Schedule, rate: Mapping[str, Any], decay: Mapping[str, Any]
    ) -> optax.GradientTransformation:
        """The last step: learning rate, multipliers, decay, and the minus sign."""
        strength = 0.0 if self.decays_itself() else self.weight_decay
        independent = self.decay_convention == "independent"

        def init(params: Any) -> ScheduleState:
            del params
            return ScheduleState(jnp.zeros((), jnp.int32))

        def update(updates: Any, state: ScheduleState, params: Any = None) -> tuple[Any, Any]:
            lr = schedule(state.count)

            def step(path: str, direction: jax.Array, param: jax.Array) -> jax.Array:
                rates, decays = rate[path], strength * decay[path]
                change = lr * rates * direction.astype(param.dtype)
                if np.any(decays):
                    pull = lr / self.lr if independent else lr * rates
                    change += pull * decays * param
                return -change.astype(param.dtype)

            count = optax.safe_increment(state.count)
            return rules.map_with_path(step, updates, params), ScheduleState(count)

        return optax.GradientTransformation(init, update)


# --- the algorithms -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101).

    mu_dtype is the first moment's; the second stays float32, where bfloat16's 8 bits would drop
    most increments of a slow average. bias_correction=False is BERT's (`scale_by_adam`).
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: Dtype = "float32"
    bias_correction: bool = True

    def precondition(self, leaves, decay):
        return scale_by_adam(self.b1, self.b2, self.eps, self.mu_dtype, self.bias_correction)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableAdamW(Optimizer):
    """AdamW whose updates are clipped array by array (arXiv 2304.13013), as of ModernBERT."""

    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-6
    mu_dtype: Dtype = "float32"

    def precondition(self, leaves, decay):
        adam = scale_by_stable_adam(self.b1, self.b2, self.eps, self.mu_dtype)
        return layerwise(adam, leaves)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor (arXiv 1804.04235) as ViT-g changed it (arXiv 2106.04560, section 3.4).

    Second moments are factored over an array's two largest axes if both have at least
    `min_factored_size` entries; their decay 1 - t**-decay_power is capped at `b2_cap`; the first
    moment is kept, in bfloat16; updates are neither clipped nor scaled by the parameter's norm.
    """

    b1: float = 0.9
    b2_cap: float = 0.999
    decay_power: float = 0.8
    min_factored_size: int = 32
    eps: float = 1e-30
    mu_dtype: Dtype = "bfloat16"

    def precondition(self, leaves, decay):
        def b2(step: jax.Array, power: float) -> jax.Array:
            return jnp.minimum(self.b2_cap, 1.0 - (step + 1.0) ** -power)

        second_moment = optax.scale_by_factored_rms(
            decay_rate=self.decay_power,
            min_dim_size_to_factor=self.min_factored_size,
            epsilon=self.eps,
            decay_rate_fn=b2,
        )
        first_moment = optax.ema(self.b1, debias=False, accumulator_dtype=self.mu_dtype)
        return optax.chain(layerwise(second_moment, leaves), first_moment)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion (arXiv 2302.06675): the sign of an interpolated momentum; lr 3-10x below AdamW's."""

    b1: float = 0.9
    b2: float = 0.99
    mu_dtype: Dtype = "float32"

    def precondition(self, leaves, decay):
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=self.mu_dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """SGD with (Nesterov) momentum; decay_convention 'l2' adds the decay to the gradient.

    'l2' is what ResNet recipes mean (PyTorch's SGD): the decay passes through the momentum.
    """

    decay_convention: Literal["lr", "independent", "l2"] = "lr"
    momentum: float = 0.9
    nesterov: bool = False
    mu_dtype: Dtype = "float32"

    def decays_itself(self) -> bool:
        return self.decay_convention == "l2"

    def precondition(self, leaves, decay):
        trace = optax.trace(self.momentum, self.nesterov, jnp.dtype(self.mu_dtype))
        if not self.decays_itself():
            return trace
        return optax.chain(_add_decay(self.weight_decay, decay), trace)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMB(Optimizer):
    """LAMB (arXiv 1904.00962): Adam's direction plus decay, scaled to each array's own norm.

    Arrays that do not decay are not rescaled, as in the authors' BERT code. The decay is inside the
    trust ratio, so its only convention is 'lr'. Implementations differ in the bias correction: the
    paper has it, BERT's first large-batch code had not.
    """

    decay_convention: Literal["lr"] = "lr"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    mu_dtype: Dtype = "float32"
    bias_correction: bool = True

    def decays_itself(self) -> bool:
        return True

    def precondition(self, leaves, decay):
        return optax.chain(
            scale_by_adam(self.b1, self.b2, self.eps, self.mu_dtype, self.bias_correction),
            _add_decay(self.weight_decay, decay),
            _trust_ratio(optax.scale_by_trust_ratio(), leaves, decay),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LARS(Optimizer):
    """LARS (arXiv 1708.03888): the gradient plus decay, scaled to each array's norm, with momentum.

    As in MAE's linear probe the learning rate is applied after the momentum, so a falling rate acts
    at once; arrays that do not decay by the rules (even at weight_decay=0) are not rescaled.
    """

    decay_convention: Literal["lr"] = "lr"
    momentum: float = 0.9
    nesterov: bool = False
    trust_coefficient: float = 0.001
    eps: float = 0.0
    mu_dtype: Dtype = "float32"

    def decays_itself(self) -> bool:
        return True

    def precondition(self, leaves, decay):
        trust = optax.scale_by_trust_ratio(trust_coefficient=self.trust_coefficient, eps=self.eps)
        return optax.chain(
            _add_decay(self.weight_decay, decay),
            _trust_ratio(trust, leaves, decay),
            optax.trace(self.momentum, self.nesterov, jnp.dtype(self.mu_dtype)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon (Jordan et al. 2024): orthogonalised momentum for the blocks' matrices, Adam elsewhere.

    With `rms` the update of a matrix is scaled by rms * sqrt(max(fan_in, fan_out)) (arXiv
    2502.16982, section 2.2), so that AdamW's learning rate and decay carry over; None gives the
    original sqrt(max(1, fan_out / fan_in)). Embeddings, heads, biases and norms are left to Adam.
    """

    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    rms: float | None = 0.2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    mu_dtype: Dtype = "float32"

    def precondition(self, leaves, decay):
        # Trailing axes: optax takes the leading one, a scanned stack's layers, as a batch.
        matrix = optax.contrib.MuonDimensionNumbers(-2, -1)
        muon = optax.contrib.scale_by_muon(
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            mu_dtype=self.mu_dtype,
            nesterov=self.nesterov,
            weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: matrix, tree),
        )

        def rescale(update: jax.Array) -> jax.Array:
            fan_in, fan_out = update.shape[-2:]
            if self.rms is None:
                return update * math.sqrt(max(1.0, fan_out / fan_in))
            return update * (self.rms * math.sqrt(max(fan_in, fan_out)))

        def label(path: str, _: Any) -> str:
            leaf = leaves[path]
            in_block = re.search(r"(^|/)blocks(_\d+|_rest)?/", path)
            return "muon" if in_block and leaf.ndim == 2 and path.endswith("kernel") else "adam"

        return optax.partition(
            {
                "muon": optax.chain(
                    muon, optax.stateless(lambda tree, _: jax.tree.map(rescale, tree))
                ),
                "adam": optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.mu_dtype),
            },
            functools.partial(rules.map_with_path, label),
        )


def _add_decay(strength: float, decay: Mapping[str, Any]) -> optax.GradientTransformation:
    def add(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        factor = strength * decay[path]
        return update + factor * param if np.any(factor) else update

    return optax.stateless(lambda updates, params: rules.map_with_path(add, updates, params))


def _trust_ratio(
    ratio: optax.GradientTransformation, leaves: Mapping[str, Leaf], decay: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The trust ratio for arrays that decay, one ratio per layer of a stack."""

    def adapted(tree: Any) -> Any:
        return rules.map_with_path(lambda path, _: bool(np.any(decay[path])), tree)

    return optax.masked(layerwise(ratio, leaves), adapted)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "adafactor": Adafactor,
    "adamw": AdamW,
    "lamb": LAMB,
    "lars": LARS,
    "lion": Lion,
    "muon": Muon,
    "sgd": SGD,
    "stable_adamw": StableAdamW,
}
