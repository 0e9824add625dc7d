"""Contact sheets: lines of a caption and the images beside it, as one picture."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from encoders.data.images import resize, to_channels

SIDE, GAP, FRAME = 96, 8, 3  # pixels: of a tile, between tiles, around a framed one
LETTERS, LINES = 30, 5  # of a caption that are shown
_WIDTH, _SIZE = 220, 14  # pixels of a caption and of its letters
_RIGHT = (0, 140, 60)

Tile = tuple[np.ndarray, bool]  # uint8 [H, W, C], and whether it is framed
Line = tuple[str | np.ndarray, Sequence[Tile]]


def contact_sheet(lines: Sequence[Line]) -> np.ndarray:
    """Draws lines of a text, or an image, and the images beside it.

    Args:
      lines: what stands at the left, and the tiles.

    Returns:
      uint8 [H, W, 3] on white.
    """
    columns = max(len(tiles) for _, tiles in lines)
    step = SIDE + GAP
    sheet = Image.new("RGB", (GAP + _WIDTH + columns * step, GAP + len(lines) * step), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_SIZE)
    for number, (left, tiles) in enumerate(lines):
        top = GAP + number * step
        if isinstance(left, str):
            wrapped = textwrap.wrap(left, LETTERS, max_lines=LINES, placeholder=" ...") or [""]
            # The font that ships with Pillow has few letters besides Latin ones.
            draw.multiline_text((GAP, top), "\n".join(wrapped), fill="black", font=font)
        else:
            sheet.paste(_tile(left), (GAP, top))
        for column, (image, framed) in enumerate(tiles):
            at = GAP + _WIDTH + column * step
            if framed:
                edge = (at - FRAME, top - FRAME, at + SIDE + FRAME - 1, top + SIDE + FRAME - 1)
                draw.rectangle(edge, fill=_RIGHT)
            sheet.paste(_tile(image), (at, top))
    return np.asarray(sheet)


def _tile(image: np.ndarray) -> Image.Image:
    """A square tile with the whole image in the middle."""
    image = to_channels(image, 3)
    scale = SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    tile = Image.new("RGB", (SIDE, SIDE), "white")
    inside = Image.fromarray(np.ascontiguousarray(resize(image, (height, width), "bicubic")))
    tile.paste(inside, ((SIDE - width) // 2, (SIDE - height) // 2))
    return tile


def save_picture(
    picture: np.ndarray, directory: pathlib.Path, label: str, step: int | None
) -> pathlib.Path:
    """Writes directory/pictures/{label}_{step}.png, which is there only when it is complete."""
    folder = directory / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    name = label if step is None else f"{label}_{step:08d}"
    temporary = folder / f".{name}.tmp"
    Image.fromarray(picture).save(temporary, format="PNG")
    return temporary.replace(folder / f"{name}.png")
