"""What experiments on speech have in common; each call returns fresh sections.

Audio is not downloaded: `python -m tools.prepare_data --from audio --input LibriSpeech --to
data/librispeech --split train` makes a directory of clips with their lengths; data.source.path says
where it is. The paper's batches are so many samples; here a batch is so many clips, each cropped to
`max_samples` and in a bucket of its length, that the mean is theirs. Numbers without a table are
those of the authors' released configurations, from memory.
"""

from ml_collections import ConfigDict

from configs import hardware, text


def base(corpus: str, batch_size: int, max_samples: int, **preprocessing) -> ConfigDict:
    """The fields that every experiment on speech has, at 16 kHz."""
    sizes = (max_samples // 4, max_samples // 2, 3 * max_samples // 4, max_samples)
    return ConfigDict(
        dict(
            seed=0,
            batch_size=batch_size,
            preprocessing=dict(
                name="audio",
                sample_rate=16_000,
                max_samples=max_samples,
                bucket_samples=sizes,
                min_samples=2 * 16_000,
                **preprocessing,
            ),
            data=dict(
                source=clips(corpus),
                transforms=(dict(name="decode_audio"), dict(name="crop_audio")),
                threads=4,
                processes=8,
                max_corrupt_rate=0.01,
            ),
            evaluators=dict(),
            checkpoint=dict(every={"percent": 1}, keep_last=2),
            log=dict(every={"steps": 50}),
            hardware=hardware.section(),
            deadlines=dict(),
        )
    )


def clips(corpus: str, split: str = "train", **fields) -> dict:
    """Prepared clips of a corpus."""
    return dict(name="audio", path=f"data/{corpus}", split=split, **fields)


def adam(lr: float, schedule: dict) -> dict:
    """Adam with beta2 .98, eps 1e-6 and decay .01 of whatever has two axes."""
    return dict(
        name="adamw",
        lr=lr,
        schedule=schedule,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.01,
    )


def tri_stage(lr: float, warmup: float, decay: float) -> dict:
    """Adam whose rate rises, stays, and falls along a line, in percent of the run."""
    return adam(
        lr,
        dict(name="wsd", warmup={"percent": warmup}, decay={"percent": decay}, shape="linear"),
    )


def wav2vec2(variant: str) -> ConfigDict:
    """Section 4.2 of arXiv 2006.11477: Base on LibriSpeech, Large on Libri-Light's 60,000 hours.

    Base: 1.6 hours a batch of crops of at most 15.6 s, 400,000 steps, lr 5e-4 after 32,000 of
    warm-up. Large: 2.7 hours of at most 20 s, lr 3e-4, a million steps (the paper says 600,000 of
    the model that it reports; the released configuration a million).
    """
    large = variant == "large"
    config = base(
        "librilight" if large else "librispeech",
        batch_size=768 if large else 448,
        max_samples=320_000 if large else 250_000,
    )
    config.duration = {"steps": 1_000_000 if large else 400_000}
    rates = dict(dropout=0.0, attention_dropout=0.0) if large else dict(feature_gradient=0.1)
    config.model = text.model(
        "wav2vec2",
        variant,
        normalize_waveform=large,
        layer_drop=0.0 if large else 0.05,
        input_dropout=0.1,
        **rates,
    )
    config.objective = dict(
        name="speech_contrast",
        masking=dict(rate=0.65, length=10),
        quantizer=dict(groups=2, entries=320, width=768 if large else 256),
        temperature=dict(start=2.0, decay=0.999995, floor=0.1 if large else 0.5),
        projection_dim=768 if large else 256,
        num_negatives=100,
        diversity_weight=0.1,
        feature_penalty=0.0 if large else 10.0,
    )
    schedule = dict(name="linear", warmup={"steps": 32_000})
    config.optimizer = adam(3e-4 if large else 5e-4, schedule)
    return config


def fine_tuning(split: str, lr: float, steps: int, time: float, channels: float) -> ConfigDict:
    """Section 4.3 and table 6 (appendix B) of arXiv 2006.11477, from memory: wav2vec 2.0 Large.

    A linear layer for letters on top, .53 hours a batch, the front end frozen, the first 10,000
    steps of the head alone, spans of frames and channels hidden; the rate rises for 10 % of the
    steps, stays for 40 % and falls.

    Args:
      split: of data/librispeech with transcripts: '10m', '1h', '10h', '100h' or '960h'.
      lr: peak learning rate.
      steps: of training.
      time: probability that a frame begins a span of ten.
      channels: probability that a channel begins a span of 64.
    """
    letters = dict(characters="letters", max_targets=512, samples_per_frame=320)
    # 36 s: those of the longest clip that is tested on.
    config = base("librispeech", batch_size=160, max_samples=576_000, **letters)
    config.preprocessing.min_samples = 400
    config.duration = {"steps": steps}
    config.data.source = clips("librispeech", split)
    decode, crop = config.data.transforms
    config.data.transforms = (decode, dict(name="spell_transcript"), crop)
    config.model = text.model(
        "wav2vec2",
        "large",
        normalize_waveform=True,
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.1,
        input_dropout=0.0,
        layer_drop=0.1,
    )
    config.objective = dict(
        name="ctc",
        dropout=0.0,
        time_masking=dict(rate=10 * time, length=10),
        channel_masking=dict(rate=64 * channels, length=64, min_spans=0),
        freeze_features=True,
        head_only_steps=10_000,
    )
    config.optimizer = tri_stage(lr, 10, 50)
    config.init_from = dict(
        path="runs/wav2vec2_large", load=((r"encoder/.*", True),), fresh=(r"head/.*",)
    )
    config.evaluators = {
        "dev_clean": dict(
            name="ctc", test=clips("librispeech", "dev_clean"), batch_size=64, every={"percent": 5}
        )
    }
    return config


def hubert(variant: str, iteration: int, units: str, num_clusters: int, rate: float) -> ConfigDict:
    """Section IV of arXiv 2106.07447: the clusters of hidden frames, on LibriSpeech or Libri-Light.

    Base: .78 hours a batch, lr 5e-4, 250,000 steps on clusters of cepstra and 400,000, anew, on
    those of the first model. Large: 2 hours of Libri-Light, lr 1.5e-3, 400,000 steps.

    Args:
      variant: of the encoder.
      iteration: 1 or 2.
      units: directory that tools.cluster wrote.
      num_clusters: in it.
      rate: units per second.
    """
    large = variant != "base"
    config = base(
        "librilight" if large else "librispeech",
        batch_size=576 if large else 224,
        max_samples=250_000,
        units_per_second=rate,
    )
    config.duration = {"steps": 250_000 if iteration == 1 else 400_000}
    config.data.source = dict(name="units", source=config.data.source.to_dict(), path=units)
    rates = dict(dropout=0.0, attention_dropout=0.0) if large else dict(feature_gradient=0.1)
    config.model = text.model(
        "hubert",
        variant,
        normalize_waveform=large,
        layer_drop=0.0 if large else 0.05,
        input_dropout=0.0 if large else 0.1,
        **rates,
    )
    config.objective = dict(
        name="cluster_prediction",
        num_clusters=num_clusters,
        masking=dict(rate=0.8, length=10),
        projection_dim=768 if large else 256,
        feature_penalty=10.0,
    )
    schedule = dict(name="linear", warmup={"percent": 8})
    config.optimizer = adam(1.5e-3 if large else 5e-4, schedule)
    if large:
        config.optimizer.clip = 1.0
    return config
