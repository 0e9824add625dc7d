"""wav2vec 2.0 Large, fine-tuned to spell with 1 hour of transcripts.

Paper: wav2vec 2.0, arXiv 2006.11477, table 6 (from memory).
Command: python -m launch.local --config configs/wav2vec2_ctc_1h.py
    --workdir runs/wav2vec2_ctc_1h
  after wav2vec2_large; data/librispeech needs the split '1h', and 'dev_clean' to be tested on.
Cost: not measured here.
Published: 2.9 / 5.8 with a Transformer language model (test clean / other, from memory).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    config = speech.fine_tuning("1h", lr=3e-4, steps=13_000, time=0.075, channels=0.004)
    return hardware.apply(config, arg)
