"""wav2vec 2.0 Large on Libri-Light's 60,000 hours.

Paper: wav2vec 2.0, arXiv 2006.11477, section 4.2.
Command: python -m launch.slurm --config configs/wav2vec2_large.py --workdir runs/wav2vec2_large
Cost: not measured here; the paper: 128 V100 for 5.2 days.
Published: word error rate 4.8 / 8.2 with 10 minutes of transcripts and a Transformer language
  model, 1.8 / 3.3 with 960 hours (test clean / other).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    return hardware.apply(speech.wav2vec2("large"), arg)
