"""preprocessor_config.json of transformers' image processors against our `Preprocessing`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats import files
from encoders.errors import CheckpointError

FILE = "preprocessor_config.json"
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# Processors in whose configs a single number means the shorter side, not a square.
_SHORTER_SIDE = ("Bit", "CLIP", "LeViT", "ConvNext")


def read_preprocessing(
    directory: pathlib.Path, channels: int
) -> tuple[dict[str, Any] | None, str | None]:
    """The processor as a config section of `Preprocessing`.

    Returns:
      (section, None), or (None, why not): a directory without a processor, or one that does what
      `Preprocessing` cannot, still has usable weights.
    """
    path = directory / FILE
    if not path.is_file():
        return None, f"the directory has no {FILE}"
    config = files.read_json(path)
    if str(config.get("image_processor_type", "")).startswith("Siglip2"):
        config = {"resample": 2, "patch_size": 16, "max_num_patches": 256, **config}
    try:
        return {"name": "image", "channels": channels, **_fields(config, channels)}, None
    except _Unsupported as reason:
        return None, f"its {FILE} {reason}"


class _Unsupported(Exception):
    """The processor does something that `Preprocessing` cannot."""


def _fields(config: Mapping[str, Any], channels: int) -> dict[str, Any]:
    resample = config.get("resample")
    if resample not in RESAMPLE:
        raise _Unsupported(f"has resample={resample!r}, which is none of {sorted(RESAMPLE)}")
    fields = {"interpolation": RESAMPLE[resample], **_geometry(config)}
    # Their (x * factor - mean) / std as our (x / 255 - mean') / std'.
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    ratio = round(255 * factor, 12)
    mean, std = (0.0,) * channels, (1.0,) * channels
    if config.get("do_normalize", True):
        if "image_mean" not in config or "image_std" not in config:
            raise _Unsupported("normalises without image_mean and image_std")
        mean = _per_channel(config["image_mean"], channels)
        std = _per_channel(config["image_std"], channels)
    fields["mean"] = tuple(value / ratio for value in mean)
    fields["std"] = tuple(value / ratio for value in std)
    return fields


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    values = (value,) * channels if isinstance(value, int | float) else tuple(value)
    if len(values) != channels:
        raise _Unsupported(f"has {len(values)} means or deviations for {channels} channels")
    return tuple(float(number) for number in values)


def _geometry(config: Mapping[str, Any]) -> dict[str, Any]:
    if not config.get("do_resize", True):
        raise _Unsupported("does not resize")
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or ""
    if kind.startswith("Siglip2"):  # at their own aspect ratio
        return {"max_patches": config["max_num_patches"], "patch_size": config["patch_size"]}
    size, crop = config.get("size"), None
    if isinstance(size, int):
        square = not kind.startswith(_SHORTER_SIDE)
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    if not isinstance(size, Mapping):
        raise _Unsupported("has no size")
    if config.get("do_center_crop", False):
        crop = config.get("crop_size")
        if isinstance(crop, Mapping):
            crop = (crop.get("height"), crop.get("width"))
        elif isinstance(crop, int):
            crop = (crop, crop)
        if crop is None or None in crop:
            raise _Unsupported("crops without a crop_size")
    if set(size) == {"height", "width"}:
        full = (size["height"], size["width"])
        crop = crop or full
        if crop[0] * full[1] != crop[1] * full[0]:
            raise _Unsupported(f"crops {full} to {crop}, another shape")
        fraction = crop_fraction(crop[0], full[0])
        return {"image_size": crop, "crop_fraction": fraction, "keep_aspect": False}
    if set(size) == {"shortest_edge"} and crop and crop[0] == crop[1]:
        fraction = crop_fraction(crop[0], size["shortest_edge"])
        return {"image_size": crop, "crop_fraction": fraction, "keep_aspect": True}
    raise _Unsupported(f"resizes to {dict(size)} and crops to {crop}, which gives no fixed size")


def crop_fraction(crop: int, full: int) -> float:
    """The fraction for which `Preprocessing` resizes to exactly `full` before it crops.

    Raises:
      _Unsupported: the crop is larger than the image.
    """
    if crop > full:
        raise _Unsupported(f"crops {crop} pixels out of {full}")
    fraction = crop / full
    return fraction if int(crop / fraction) == full else crop / (full + 0.5)


def write_preprocessing(directory: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes the fields of `Preprocessing` as preprocessor_config.json.

    Raises:
      CheckpointError: images of another shape than a square, covered rather than distorted: no
        processor does that.
    """
    height, width = fields["image_size"]
    full = [int(side / fields["crop_fraction"]) for side in (height, width)]
    [resample] = [key for key, name in RESAMPLE.items() if name == fields["interpolation"]]
    config = {
        "do_resize": True,
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(fields["mean"]),
        "image_std": list(fields["std"]),
        "do_convert_rgb": fields["channels"] == 3,
        "do_center_crop": False,
    }
    if fields.get("max_patches") is not None:
        config |= {
            "image_processor_type": "Siglip2ImageProcessor",
            "max_num_patches": fields["max_patches"],
            "patch_size": fields["patch_size"],
        }
        files.write_json(directory / FILE, config)
        return
    if fields["keep_aspect"]:
        if height != width:
            raise CheckpointError(
                f"format 'hf': preprocessing.image_size={(height, width)} with keep_aspect=True "
                "cannot be expressed: transformers resizes the shorter side; set keep_aspect=False "
                "if distorted images will do."
            )
        config |= {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": full[0]}}
    else:
        plain = full == [height, width]
        kind = "ViTImageProcessor" if plain else "DeiTImageProcessor"
        config |= {
            "image_processor_type": kind,
            "size": {"height": full[0], "width": full[1]},
        }
    if fields["keep_aspect"] or full != [height, width]:
        config |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    files.write_json(directory / FILE, config)
