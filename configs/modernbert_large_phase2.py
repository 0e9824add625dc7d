"""ModernBERT-large, phase 2: 250 B tokens in rows of 8,192.

Paper: ModernBERT: Smarter, Better, Faster, Longer, arXiv 2412.13663, section 3.
Command: python -m launch.local --config configs/modernbert_large_phase2.py
  --workdir runs/modernbert_large_phase2
Cost: not measured here.
Published: GLUE 90.4; 395M parameters.
Measured: not run.
"""

from configs import bert, hardware


def get_config(arg=None):
    config = bert.modernbert("large", phase=2)
    return hardware.apply(config, arg)
