"""What a model makes of what it cannot see: reconstruction error, and pictures to look at."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import numpy as np

from encoders.errors import ConfigError, DataError
from encoders.evaluation.base import Evaluator, batches, on_mesh, place
from encoders.evaluation.contact_sheet import save_picture
from encoders.parallel.mesh import to_host

PANELS = ("target", "masked", "prediction")
GAP, TILE = 4, 112  # pixels between tiles, and their least side


@dataclasses.dataclass(kw_only=True)
class Reconstruction(Evaluator):
    """Reconstruction of `test`, for any objective with `reconstruct(batch)`.

    `reconstruct` returns 'target', 'masked' and 'prediction', each [B, H, W, C] normalised like the
    input. Masks are those of evaluation, the same at every step and for every mesh.

    Metric: 'masked_mse', the objective's own loss on the test set: the squared error of masked
    patches, in the units in which it compares them (for MAE, patches normalised one by one).

    Picture: directory/pictures/{label}_{step}.png, one column per example; rows are original,
    masked and prediction. Written by the first process only.

    Attributes:
      examples: columns of the picture, spread over the first batch; 0 for no picture.
    """

    subject: ClassVar[Literal["encoder", "objective"]] = "objective"

    examples: int = 8
    label: str = "reconstruction"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._compiled: tuple[nn.Module, Any, Any] | None = None

    def run(
        self, module: nn.Module, variables: Mapping[str, Any], *, step: int | None = None
    ) -> dict[str, float]:
        if not callable(getattr(module, "reconstruct", None)):
            raise ConfigError(
                f"evaluators.{self.label}: {type(module).__name__} reconstructs nothing; this "
                "evaluator needs an objective such as masked_image."
            )
        if self._compiled is None or self._compiled[0] != module:
            self._compiled = module, *self._compile(module)
        _, loss, pictures = self._compiled
        variables = place(variables, self.mesh)
        pending, panels = [], None
        for batch in batches(self.test_source, self.preprocessing, self.batch_size, self.mesh):
            if panels is None and self.directory is not None and self.examples:
                valid = int(to_host(batch["valid"]).sum())
                panels = {k: v[:valid] for k, v in to_host(pictures(variables, batch)).items()}
            pending.append(loss(variables, batch))
        if not pending:
            raise DataError(f"evaluators.{self.label}.test: the source is empty.")
        if panels is not None and jax.process_index() == 0:
            self._write(panels, step)
        total, weight = np.sum(jax.device_get(pending), 0, float)
        return {"masked_mse": float(total / weight)}

    def _compile(self, module: nn.Module) -> tuple[Any, Any]:
        def loss(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            outcome = module.apply(variables, batch, train=False)
            return outcome.loss, outcome.weight

        def pictures(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return module.apply(variables, batch, method="reconstruct")

        return tuple(
            on_mesh(function, self.preprocessing, self.mesh, self.compute_dtype)
            for function in (loss, pictures)
        )

    def _write(self, panels: Mapping[str, np.ndarray], step: int | None) -> None:
        chosen = np.unique(np.linspace(0, len(panels["target"]) - 1, self.examples).astype(int))
        rows = [self.preprocessing.denormalize(panels[name][chosen]) for name in PANELS]
        save_picture(grid(np.stack(rows)), pathlib.Path(self.directory), self.label, step)


def grid(tiles: np.ndarray) -> np.ndarray:
    """Tiles [rows, columns, H, W, C] in [0, 1] as one RGB picture, uint8, on white.

    Small tiles are enlarged by whole factors, so that their pixels stay square.
    """
    rows, columns, height, width, channels = tiles.shape
    factor = max(1, -(-TILE // max(height, width)))
    tiles = np.clip(np.nan_to_num(tiles), 0, 1).repeat(factor, axis=2).repeat(factor, axis=3)
    tiles = np.round(255 * tiles).astype(np.uint8)
    tiles = tiles[..., :3] if channels >= 3 else tiles[..., :1].repeat(3, axis=-1)
    high, wide = height * factor + GAP, width * factor + GAP
    picture = np.full((rows * high - GAP, columns * wide - GAP, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * high, column * wide
            picture[top : top + high - GAP, left : left + wide - GAP] = tiles[row, column]
    return picture
