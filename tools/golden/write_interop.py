"""Stores tiny transformers and timm directories with what those compute: tests/golden/interop.

    python -m tools.golden.write_interop

Needs PyTorch, transformers and timm; the tests that read the result need none of them.
"""

from __future__ import annotations

import pathlib
import shutil

import numpy as np

from tools.golden import interop_models
from tools.golden.inputs import picture

DIRECTORY = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "interop"


def main() -> None:
    """Writes every stored case anew."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    for name, case in interop_models.CASES.items():
        if not case.stored:
            continue
        model = interop_models.build(name)
        directory = DIRECTORY / name
        directory.mkdir(parents=True)
        interop_models.save(name, model, directory)
        images = picture(case.image_size)
        expected = interop_models.outputs(name, model, images)
        np.savez_compressed(
            directory / "expected.npz", image_size=np.array(case.image_size), **expected
        )
        print(name, sum(file.stat().st_size for file in directory.iterdir()), "bytes")


if __name__ == "__main__":
    main()
