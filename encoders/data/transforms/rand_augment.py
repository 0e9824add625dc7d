"""RandAugment: a few random operations of one magnitude (Cubuk et al., arXiv 1909.13719)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from encoders.data import images
from encoders.data.transforms.geometry import Example, decoded
from encoders.errors import ConfigError, nearest

_MAX = 10.0  # the magnitude at which an operation is at its strongest
_RESAMPLING = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies `num_ops` operations, drawn with replacement.

    The paper's form is num_ops=2, magnitude=10. timm's 'rand-m9-mstd0.5-inc1' is num_ops=2,
    magnitude=9, magnitude_std=0.5, increasing=True, probability=0.5.

    Attributes:
      num_ops: operations applied one after the other.
      magnitude: their strength, 0 to 10.
      magnitude_std: standard deviation of a normal noise added to it for each operation, then
        clipped.
      increasing: strengths of posterize, solarize, colour, contrast, brightness and sharpness grow
        with the magnitude; False keeps the ranges of the original code, where some shrink.
      probability: of each drawn operation being applied.
      ops: names of the operations to draw from; None takes the paper's 14 and solarize_add.
      mean: per channel in [0, 1], fills what rotation, shear and translation uncover.
    """

    num_ops: int = 2
    magnitude: float = 10.0
    magnitude_std: float = 0.0
    increasing: bool = False
    probability: float = 1.0
    ops: tuple[str, ...] | None = None
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= _MAX or self.num_ops < 0:
            raise ConfigError(
                f"rand_augment: expected num_ops from 0 and magnitude in [0, 10], got "
                f"{self.num_ops} "
                f"and {self.magnitude}."
            )
        for name in self.ops or ():
            if name not in OPS:
                raise ConfigError(
                    f"rand_augment.ops: unknown operation '{name}'.{nearest(name, OPS)}"
                )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        array = decoded(example, None)
        image = images.to_pillow(array)
        fill = tuple(round(255 * value) for value in self.mean[: array.shape[2]])
        names = self.ops or _DEFAULT
        for choice in rng.integers(0, len(names), self.num_ops):
            # Every number is drawn whether or not it is used, so that operations do not shift each
            # other's.
            applied, noise = rng.random() < self.probability, rng.normal()
            strength = np.clip(self.magnitude + self.magnitude_std * noise, 0.0, _MAX) / _MAX
            sign, resampling = rng.choice((-1.0, 1.0)), _RESAMPLING[rng.integers(2)]
            if applied:
                image = OPS[names[choice]](
                    image,
                    Draw(float(strength), float(sign), self.increasing, fill, resampling),
                )
        return {**example, "image": images.from_pillow(image)}


@dataclasses.dataclass(frozen=True)
class Draw:
    """What an operation is told: strength in [0, 1], a sign, and how to fill and resample."""

    strength: float
    sign: float
    increasing: bool
    fill: tuple[int, ...]
    resampling: Image.Resampling


def _enhance(kind: type) -> Callable:
    def apply(image: Image.Image, draw: Draw) -> Image.Image:
        if draw.increasing:
            factor = max(0.1, 1.0 + 0.9 * draw.sign * draw.strength)
        else:
            factor = 0.1 + 1.8 * draw.strength
        return kind(image).enhance(factor)

    return apply


def _affine(coefficients: Callable[[Image.Image, float], tuple[float, ...]]) -> Callable:
    def apply(image: Image.Image, draw: Draw) -> Image.Image:
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            coefficients(image, draw.sign * draw.strength),
            resample=draw.resampling,
            fillcolor=draw.fill,
        )

    return apply


def _rotate(image: Image.Image, draw: Draw) -> Image.Image:
    degrees = 30.0 * draw.sign * draw.strength
    return image.rotate(degrees, resample=draw.resampling, fillcolor=draw.fill)


def _posterize(image: Image.Image, draw: Draw) -> Image.Image:
    bits = int(4 * draw.strength)
    bits = 4 - bits if draw.increasing else bits
    # Nothing is left of an image of zero bits; the original code has that case too.
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)


def _solarize(image: Image.Image, draw: Draw) -> Image.Image:
    threshold = min(256, int(256 * draw.strength))
    return ImageOps.solarize(image, 256 - threshold if draw.increasing else threshold)


def _solarize_add(image: Image.Image, draw: Draw) -> Image.Image:
    add = min(128, int(110 * draw.strength))
    table = [min(255, value + add) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


OPS: dict[str, Callable[[Image.Image, Draw], Image.Image]] = {
    "identity": lambda image, draw: image,
    "auto_contrast": lambda image, draw: ImageOps.autocontrast(image),
    "equalize": lambda image, draw: ImageOps.equalize(image),
    "invert": lambda image, draw: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda image, level: (1, 0.3 * level, 0, 0, 1, 0)),
    "shear_y": _affine(lambda image, level: (1, 0, 0, 0.3 * level, 1, 0)),
    "translate_x": _affine(lambda image, level: (1, 0, 0.45 * level * image.width, 0, 1, 0)),
    "translate_y": _affine(lambda image, level: (1, 0, 0, 0, 1, 0.45 * level * image.height)),
}
_DEFAULT = tuple(name for name in OPS if name != "identity")
