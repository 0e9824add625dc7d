"""wav2vec 2.0 Base on LibriSpeech's 960 hours.

Paper: wav2vec 2.0, arXiv 2006.11477, section 4.2.
Command: python -m launch.local --config configs/wav2vec2_base.py --workdir runs/wav2vec2_base
Cost: not measured here; the paper: 64 V100 for 1.6 days; NVIDIA's code 48 h on 8 A100.
Published: word error rate after fine-tuning, no language model, test clean / other: 46.9 / 50.9
  with 10 minutes of transcripts, 24.5 / 29.7 with 1 h, 11.1 / 17.6 with 10 h, 6.1 / 13.3 with
  100 h, 3.4 / 8.5 with 960 h (from memory).
Measured: not run.
"""

from configs import hardware, speech


def get_config(arg=None):
    return hardware.apply(speech.wav2vec2("base"), arg)
