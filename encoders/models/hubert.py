"""HuBERT (arXiv 2106.07447).

Differences from wav2vec 2.0: none in the network, but a size more. It is trained otherwise, to find
the clusters of hidden frames (the objective 'cluster_prediction').
"""

from __future__ import annotations

from encoders.models.wav2vec2 import SpeechSize, Wav2Vec2


class HuBERT(Wav2Vec2):
    """HuBERT; attributes as in `Wav2Vec2`."""

    # Section 4.1, table 1.
    SIZES = {  # noqa: RUF012
        "base": SpeechSize(768, 12, 3072, 12, "group", False, False),
        "large": SpeechSize(1024, 24, 4096, 16),
        "xlarge": SpeechSize(1280, 48, 5120, 16),
    }
