"""wav2vec 2.0 Large, fine-tuned to spell with 10 minutes of transcripts.

Paper: wav2vec 2.0, arXiv 2006.11477, table 6 (from memory).
Command: python -m launch.local --config configs/wav2vec2_ctc_10m.py
    --workdir runs/wav2vec2_ctc_10m
  after wav2vec2_large; data/librispeech needs the split '10m', and 'dev_clean' to be tested on.
Cost: not measured here.
Published: 4.8 / 8.2 with a Transformer language model (test clean / other).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    config = speech.fine_tuning("10m", lr=1e-4, steps=12_000, time=0.075, channels=0.008)
    return hardware.apply(config, arg)
