"""wav2vec 2.0 Large, fine-tuned to spell with 100 hours of transcripts.

Paper: wav2vec 2.0, arXiv 2006.11477, table 6 (from memory).
Command: python -m launch.local --config configs/wav2vec2_ctc_100h.py
    --workdir runs/wav2vec2_ctc_100h
  after wav2vec2_large; data/librispeech needs the split '100h', and 'dev_clean' to be tested on.
Cost: not measured here.
Published: 2.0 / 4.0 with a Transformer language model (test clean / other, from memory).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    config = speech.fine_tuning("100h", lr=3e-5, steps=50_000, time=0.05, channels=0.008)
    return hardware.apply(config, arg)
