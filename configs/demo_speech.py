"""HuBERT on 480 spoken digits, from waveforms to a report, on two CPU cores.

Paper: HuBERT, arXiv 2106.07447, at toy size.
Command: make demo-speech
  python -m tools.cluster --model runs/demo_speech --layer 2 --normalize --clusters 100
    --config configs/demo_speech.py --output runs/demo_speech_second_units
  python -m launch.local --config configs/demo_speech.py:second --workdir runs/demo_speech_second
Cost: see README.
Published: none.
Measured: see docs/speech.md.

Four speakers are trained on and two are never heard in training. Digits are joined to rows of two
seconds, each at a speed of its own, and the clusters to be guessed are of cepstra without what is
particular to a speaker: with single digits as they are, and clusters of plain cepstra, probes fall
behind cepstra. Probes of the frozen encoder tell digits of the two speakers from those of the four,
and speakers by other recordings of them; means of cepstra and the same network with random weights
are what they have to beat.

The argument 'second' guesses clusters of what was trained first; 'contrast' is wav2vec 2.0 on the
same clips. 'ctc' fine-tunes what was trained to spell the digits of the four, and is tested on the
two; 'scratch' does the same from random weights.
"""

from ml_collections import ConfigDict

from configs import hardware, sweeps

HELD_OUT = ("theo", "lucas")
VARIANTS = ("second", "contrast", "ctc", "scratch")


def get_config(arg=None):
    names = (arg or "").split(",")
    chosen = [name for name in names if name in VARIANTS]
    if len(chosen) > 1:
        raise ValueError(f"{chosen[0]!r} and {chosen[1]!r} are variants of demo_speech; name one")
    config = ConfigDict()
    config.seed = 0
    config.duration = {"steps": 2400}
    config.batch_size = 8
    config.preprocessing = dict(
        name="audio",
        sample_rate=8000,
        max_samples=16000,
        min_samples=600,
        # As of cepstra, and of the model's frames.
        units_per_second=50.0 if "second" in names else 100.0,
    )
    units = "runs/demo_speech_second_units" if "second" in names else "runs/demo_speech_units"
    seen = digits("train", without_speakers=HELD_OUT)
    rows = dict(name="joined", source=seen, count=6, copies=4, speed=(0.78, 1.28))
    config.data = dict(
        source=dict(name="units", source=rows, path=units),
        transforms=(dict(name="decode_audio"), dict(name="crop_audio")),
    )
    config.model = dict(
        name="hubert",
        width=128,
        depth=4,
        mlp_dim=512,
        num_heads=4,
        conv_dim=96,
        conv_kernels=(20, 3, 3, 3, 2),
        conv_strides=(10, 2, 2, 2, 2),
        conv_norm="layer",
        conv_bias=True,
        pre_norm=True,
        normalize_waveform=True,
        position_kernel=16,
        position_groups=8,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
    )
    config.objective = dict(
        name="cluster_prediction",
        num_clusters=100,
        masking=dict(rate=0.65, length=5),
        projection_dim=64,
        feature_penalty=0.0,
        guard=dict(floors={"perplexity": 10.0}, patience=100),
    )
    config.optimizer = dict(
        name="adamw",
        lr=1e-3,
        schedule=dict(name="linear", warmup={"percent": 10}),
        b2=0.98,
        eps=1e-6,
        weight_decay=0.01,
        clip=1.0,
    )
    probe = dict(name="linear_probe", batch_size=64, baselines=("mfcc", "random"))
    held_out = digits("train", speakers=HELD_OUT)
    config.evaluators = {
        "digits": dict(probe, feature="max", train=seen, test=held_out),
        "speakers": dict(
            probe, feature="mean", train=digits("train"), test=digits("test"), target="speaker"
        ),
    }
    config.checkpoint = dict(every={"percent": 50}, keep_last=1)
    config.log = dict(every={"steps": 20})
    config.hardware = hardware.section()
    config.deadlines = {}
    if "contrast" in names:
        _contrast(config)
    if {"ctc", "scratch"} & set(names):
        _spelling(config, "scratch" in names)
    return hardware.apply(config, ",".join(name for name in names if name not in VARIANTS))


def digits(split, **which):
    """Spoken digits that ship: 8 kHz, six speakers."""
    return dict(name="audio", path="sample:digits", split=split, **which)


def _contrast(config):
    config.model.name = "wav2vec2"
    config.data.source = config.data.source.source
    config.objective = dict(
        name="speech_contrast",
        masking=config.objective.masking,
        quantizer=dict(groups=2, entries=64, width=64),
        temperature=dict(start=2.0, decay=0.999, floor=0.5),
        projection_dim=64,
        num_negatives=40,
        feature_penalty=0.0,
        feature_dropout=0.0,
        guard=config.objective.guard,
    )


def _spelling(config, scratch):
    config.duration = {"steps": 600}
    config.preprocessing.update(characters="letters", max_targets=32, samples_per_frame=160)
    config.data.source = config.data.source.source
    config.data.source.update(count=2, copies=1)
    decode, crop = config.data.transforms
    config.data.transforms = (decode, dict(name="spell_transcript"), crop)
    config.objective = dict(
        name="ctc",
        time_masking=dict(rate=0.2, length=3),
        channel_masking=dict(rate=0.0, length=16, min_spans=0),
        freeze_features=not scratch,
    )
    test = digits("train", speakers=HELD_OUT)
    config.evaluators = {"held_out": dict(name="ctc", test=test, batch_size=64)}
    if not scratch:
        config.init_from = dict(
            path="runs/demo_speech", load=((r"encoder/.*", True),), fresh=(r"head/.*",)
        )


def sweep():
    """Three seeds of the pre-training."""
    return sweeps.grid({"seed": (0, 1, 2)}, metric="eval/digits/accuracy")
