"""data2vec for speech (arXiv 2202.03555, section 4.2).

Differences from wav2vec 2.0: all convolutions have layer norms and no biases, also in Base; blocks
are post-norm, also in Large; positions come from five convolutions of 19 frames, each with a layer
norm without parameters before its GELU, and without weight norm.

Before each of those five padding is zero, so that a clip gives in a batch what it gives alone.
Public PyTorch code zeroes it before the first only, and the last frames before padding differ.
"""

from __future__ import annotations

from encoders.models.wav2vec2 import SpeechSize, Wav2Vec2


class Data2VecAudio(Wav2Vec2):
    """data2vec's encoder of speech; other attributes as in `Wav2Vec2`.

    Attributes:
      position_depth: convolutions of positions, one after the other.
    """

    position_kernel: int = 19
    position_depth: int = 5
    input_dropout: float = 0.0

    WEIGHT_NORM = False

    SIZES = {  # noqa: RUF012
        "base": SpeechSize(768, 12, 3072, 12, "layer", False, False),
        "large": SpeechSize(1024, 24, 4096, 16, "layer", False, False),
    }
