"""Measures decoding and random-resized-crop to 224 of 500×375 JPEGs against torchvision.

    python -m tools.benchmark_input                       # one JSON line
    python -m tools.benchmark_input --images PHOTOS --interpolation bilinear

Both run alternately in one thread, so that whatever else the machine does meets them alike; the
figures are images per second of processor time. The peer is torchvision's pipeline on its default
(Pillow) backend as training scripts write it, or, where torchvision is not installed, the same
calls of Pillow.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from encoders.data.pipeline import Pipeline
from encoders.data.sources.folder import Folder
from encoders.data.transforms.geometry import RandomResizedCrop
from encoders.errors import ConfigError, exit_cleanly
from launch.flags import Parser

_SIZE = (375, 500)  # the commonest size in ImageNet
_TARGET = (224, 224)
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON line."""
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--images", help="folder of photographs; default synthetic ones")
    parser.add_argument("--count", type=int, default=64, help="images per round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs, with 4:2:0 chroma")
    parser.add_argument("--interpolation", default="bicubic", choices=sorted(_RESAMPLING))
    flags = parser.parse(arguments)
    if min(flags.count, flags.rounds, flags.quality) < 1:
        raise ConfigError("--count, --rounds and --quality: expected numbers from 1.")
    files = [
        _encode(image, flags.quality)
        for image in (_photographs(flags.images) if flags.images else _synthetic(flags.count))
    ]
    files = [files[number % len(files)] for number in range(flags.count)]
    print(json.dumps(compare(files, flags.interpolation, flags.rounds)))
    return 0


def compare(files: Sequence[bytes], interpolation: str, rounds: int) -> dict[str, object]:
    """Times both pipelines on JPEG files; see the module for what is measured."""
    transform = RandomResizedCrop(image_size=_TARGET, interpolation=interpolation)
    rng = np.random.default_rng(0)
    peer_name, peer = _peer(interpolation)

    def ours(data: bytes) -> np.ndarray:
        return transform({"image": data}, rng)["image"]

    ratios, own_rates, peer_rates = [], [], []
    for number in range(rounds + 1):
        own, other = _seconds(ours, files), _seconds(peer, files)
        if number:  # the first round fills caches
            own_rates.append(len(files) / own)
            peer_rates.append(len(files) / other)
            ratios.append(other / own)
    differences = _differences(files, transform)
    return {
        "benchmark": "decode + random_resized_crop 224, 500x375 JPEG, 1 thread",
        "interpolation": interpolation,
        "images_per_second_per_core": round(statistics.median(own_rates), 1),
        "peer": peer_name,
        "peer_images_per_second_per_core": round(statistics.median(peer_rates), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
        "mean_pixel_difference": round(float(differences.mean()), 3),
        "max_pixel_difference": int(differences.max()),
        "jpeg_kilobytes": round(statistics.mean(map(len, files)) / 1000, 1),
        "rounds": rounds,
    }


def _seconds(function: Callable[[bytes], object], files: Sequence[bytes]) -> float:
    began = time.process_time()
    for data in files:
        function(data)
    return time.process_time() - began


def _differences(files: Sequence[bytes], transform: RandomResizedCrop) -> np.ndarray:
    """Absolute differences (0 to 255) from what Pillow makes of the same boxes."""
    found = []
    for number, data in enumerate(files):
        box = transform.sample(_SIZE, np.random.default_rng(number))
        ours = transform({"image": data}, np.random.default_rng(number))["image"]
        found.append(np.abs(ours.astype(int) - _by_pillow(data, box, transform.interpolation)))
    return np.stack(found)


def _by_pillow(data: bytes, box: tuple[int, int, int, int], interpolation: str) -> np.ndarray:
    top, left, bottom, right = box
    with Image.open(io.BytesIO(data)) as file:
        image = file.convert("RGB").crop((left, top, right, bottom))
    return np.array(image.resize(_TARGET[::-1], _RESAMPLING[interpolation]))


def _peer(interpolation: str) -> tuple[str, Callable[[bytes], object]]:
    pillow = f"Pillow {importlib.metadata.version('pillow')}"
    try:
        import torch
        from torchvision import transforms
    # A wheel for another build of torch fails by a RuntimeError.
    except (ImportError, RuntimeError):
        sampler, rng = RandomResizedCrop(image_size=_TARGET), np.random.default_rng(0)
        return (
            f"the calls of torchvision's backend, {pillow}",
            lambda data: _by_pillow(data, sampler.sample(_SIZE, rng), interpolation),
        )
    torch.set_num_threads(1)
    modes = transforms.InterpolationMode
    pipeline = transforms.Compose(
        [
            transforms.RandomResizedCrop(_TARGET, interpolation=modes(interpolation)),
            transforms.PILToTensor(),
        ]
    )

    def run(data: bytes) -> object:
        with Image.open(io.BytesIO(data)) as file:
            return pipeline(file.convert("RGB"))

    return f"torchvision {importlib.metadata.version('torchvision')}, {pillow}", run


def _photographs(folder: str) -> list[np.ndarray]:
    """The middles of the images of a folder at 500×375 pixels."""
    from encoders.data.transforms.geometry import CenterCrop, Decode, Resize

    transforms = [Decode(), Resize(image_size=_SIZE), CenterCrop(image_size=_SIZE)]
    source = Folder(path=folder)
    pipeline = Pipeline(source, transforms, len(source), 0, shuffle=False)
    return list(pipeline.batch(0)["image"])


def _synthetic(count: int) -> list[np.ndarray]:
    """Textures with the spectrum and colours of photographs: amplitudes fall as 1 / frequency."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(_SIZE[0])[:, None], np.fft.rfftfreq(_SIZE[1])[None])
    frequency[0, 0] = 1.0
    mixing = np.array([[1.0, 0.9, 0.8], [0.2, 0.1, -0.2], [0.05, -0.1, 0.1]])
    found = []
    for _ in range(min(count, 32)):
        phases = rng.normal(size=(3, *frequency.shape, 2)) @ np.array([1, 1j])
        planes = np.fft.irfft2(phases / frequency**1.1, _SIZE).transpose(1, 2, 0) @ mixing
        planes = (planes - planes.mean()) / planes.std()
        found.append(np.clip(120 + 50 * planes, 0, 255).astype(np.uint8))
    return found


def _encode(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


if __name__ == "__main__":
    exit_cleanly(main)
