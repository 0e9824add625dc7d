"""data2vec Base on LibriSpeech's 960 hours.

Paper: data2vec, arXiv 2202.03555, section 4.2 and appendix (numbers of the released configuration,
  from memory).
Command: python -m launch.local --config configs/data2vec_audio_base.py --workdir runs/data2vec
Cost: not measured here; the paper: 16 GPUs.
Published: word error rate on test-other 12.3 with 10 minutes of transcripts and a 4-gram language
  model, 5.5 with 960 hours (from memory).
Measured: not run.
"""

from configs import hardware, speech, text


def get_config(arg=None):
    config = speech.base("librispeech", batch_size=304, max_samples=320_000)
    config.duration = {"steps": 400_000}
    config.model = text.model(
        "data2vec_audio", "base", normalize_waveform=True, layer_drop=0.05, input_dropout=0.0
    )
    config.objective = dict(
        name="data2vec",
        masking=dict(rate=0.65, length=10),
        top_layers=8,
        momentum=dict(start=0.999, end=0.9999, over={"steps": 30_000}),
    )
    config.optimizer = speech.tri_stage(5e-4, 3, 7)
    return hardware.apply(config, arg)
