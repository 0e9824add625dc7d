"""wav2vec 2.0 Large, fine-tuned to spell with 960 hours of transcripts.

Paper: wav2vec 2.0, arXiv 2006.11477, table 6 (from memory).
Command: python -m launch.local --config configs/wav2vec2_ctc_960h.py
    --workdir runs/wav2vec2_ctc_960h
  after wav2vec2_large; data/librispeech needs the split '960h', and 'dev_clean' to be tested on.
Cost: not measured here.
Published: 1.8 / 3.3 with a Transformer language model (test clean / other).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    config = speech.fine_tuning("960h", lr=3e-5, steps=320_000, time=0.05, channels=0.0016)
    return hardware.apply(config, arg)
