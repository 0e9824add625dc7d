import json

import numpy as np
import pytest
from PIL import Image

from encoders.errors import ConfigError, DataError
from tools.benchmark_input import main


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_one_line_that_says_everything(interpolation, capsys):
    assert main(["--count", "3", "--rounds", "4", "--interpolation", interpolation]) == 0
    [line] = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["interpolation"] == interpolation
    assert result["images_per_second_per_core"] > 0
    assert result["peer_images_per_second_per_core"] > 0
    assert result["ratio_quartiles"][0] <= result["ratio"] <= result["ratio_quartiles"][1]
    assert "Pillow" in result["peer"]
    # Equal quality: what is faster must show the same picture.
    assert result["mean_pixel_difference"] < 0.3
    assert result["max_pixel_difference"] <= (1 if interpolation == "bilinear" else 16)
    assert 60 < result["jpeg_kilobytes"] < 150


def test_own_photographs(tmp_path, capsys):
    for number in range(2):
        Image.fromarray(np.full((300, 700, 3), 90 * number, np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    main(["--images", str(tmp_path), "--count", "3", "--rounds", "2"])
    assert json.loads(capsys.readouterr().out)["jpeg_kilobytes"] < 10


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="from 1"):
        main(["--rounds", "0"])
    with pytest.raises(DataError, match="no images"):
        main(["--images", str(tmp_path)])
