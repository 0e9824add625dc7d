"""A map of embeddings: one HTML file with a thumbnail for every image, alike ones near each other.

The two axes are the first principal components. Nothing is loaded from elsewhere: the pictures are
inside the file, and so is the little script that drags, zooms and names.
"""

from __future__ import annotations

import base64
import html
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from encoders.errors import DataError, StorageError

MOST = 2000  # thumbnails; of more embeddings so many are taken, evenly spread
SIDE = 48  # pixels of a thumbnail

_PAGE = pathlib.Path(__file__).with_name("embedding_map.html")


def plane(vectors: np.ndarray) -> np.ndarray:
    """[N, D] -> [N, 2] float64, the first two principal components, each scaled to [0, 1].

    Raises:
      DataError: there are fewer than three vectors, so there is no plane.
    """
    if len(vectors) < 3:
        raise DataError(f"--map: expected three images or more, got {len(vectors)}.")
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    found = (left * scale)[:, :2]
    points[:, : found.shape[1]] = found
    # The sign of a component is arbitrary: its largest is made positive, so maps stay the same.
    largest = points[np.abs(points).argmax(0), [0, 1]]
    points *= np.where(largest < 0, -1, 1)
    low, high = points.min(0), points.max(0)
    return (points - low) / np.where(high > low, high - low, 1)


def spread(count: int) -> np.ndarray:
    """Which of `count` embeddings are shown: all, or MOST of them evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST)).astype(int))


def thumbnail(image: np.ndarray) -> str:
    """An image uint8 [H, W, C] as a data URL of a small PNG."""
    from PIL import Image

    from encoders.data.images import resize, to_channels

    image = to_channels(image, 3)
    scale = SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(resize(image, size, "bicubic"))).save(
        buffer, "PNG", optimize=True
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def page(title: str, points: np.ndarray, names: Sequence[str], thumbnails: Sequence[str]) -> str:
    """The page.

    Args:
      title: above the map.
      points: [N, 2] in [0, 1].
      names: what is shown where the pointer is, N of them.
      thumbnails: data URLs, N of them.
    """
    pictures = "\n".join(
        f'<img alt="" title="{html.escape(name)}" src="{url}" '
        f'style="left:{100 * x:.2f}%;top:{100 * (1 - y):.2f}%">'
        for (x, y), name, url in zip(points, names, thumbnails, strict=True)
    )
    text = _PAGE.read_text(encoding="utf-8")
    return text.replace("{title}", html.escape(title)).replace("{pictures}", pictures)


def write_map(path: pathlib.Path, title: str, source: Any, names: Any, vectors: Any) -> int:
    """Writes the map of a source's embeddings.

    Args:
      path: the HTML file.
      title: above the map.
      source: of the images.
      names: [N] where each image is, as `source.describe` says it.
      vectors: [N, D].

    Returns:
      How many images it shows.

    Raises:
      DataError: there are fewer than three.
      StorageError: it could not be written.
    """
    from encoders.data.transforms.geometry import Decode

    chosen = spread(len(names))
    rows = {source.describe(row): row for row in range(len(source))}
    decode = Decode(channels=3)
    pictures = [decode(source[rows[str(names[n])]], None)["image"] for n in chosen]
    shown = [str(names[n]).rpartition("/")[2] for n in chosen]
    text = page(title, plane(vectors[chosen]), shown, [thumbnail(image) for image in pictures])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--map {path}: could not be written ({error}).") from error
    return len(chosen)
