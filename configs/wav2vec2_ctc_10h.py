"""wav2vec 2.0 Large, fine-tuned to spell with 10 hours of transcripts.

Paper: wav2vec 2.0, arXiv 2006.11477, table 6 (from memory).
Command: python -m launch.local --config configs/wav2vec2_ctc_10h.py
    --workdir runs/wav2vec2_ctc_10h
  after wav2vec2_large; data/librispeech needs the split '10h', and 'dev_clean' to be tested on.
Cost: not measured here.
Published: 2.6 / 4.9 with a Transformer language model (test clean / other, from memory).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    config = speech.fine_tuning("10h", lr=1e-4, steps=20_000, time=0.065, channels=0.004)
    return hardware.apply(config, arg)
