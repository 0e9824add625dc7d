"""wav2vec 2.0 on 480 spoken digits, from waveforms to a report, on two CPU cores.

Paper: wav2vec 2.0, arXiv 2006.11477, at toy size.
Command: make demo-speech
Cost: see README.
Published: none.
Measured: see README.

Four speakers are trained on and two are never heard in training. Probes of the frozen encoder tell
digits of the two from those of the four, and speakers by other recordings of them; cepstra and the
same network with random weights are what they have to beat.

The argument 'ctc' fine-tunes what was trained to spell the digits of the four, and is tested on the
two; 'scratch' does the same from random weights.
"""

from ml_collections import ConfigDict

from configs import hardware, sweeps

HELD_OUT = ("theo", "lucas")


def get_config(arg=None):
    names = (arg or "").split(",")
    config = ConfigDict()
    config.seed = 0
    config.duration = {"steps": 1000}
    config.batch_size = 32
    config.preprocessing = dict(
        name="audio",
        sample_rate=8000,
        max_samples=12000,
        bucket_samples=(3200, 4800, 12000),
        min_samples=600,
    )
    config.data = dict(
        source=digits("train", without_speakers=HELD_OUT),
        transforms=(
            dict(name="decode_audio"),
            dict(name="change_speed", least=0.9, most=1.1),
            dict(name="crop_audio"),
        ),
    )
    # Frames of 10 ms: half a second is little for the 20 ms of the paper.
    config.model = dict(
        name="wav2vec2",
        width=128,
        depth=4,
        mlp_dim=512,
        num_heads=4,
        conv_dim=96,
        conv_kernels=(10, 3, 3, 3, 2),
        conv_strides=(5, 2, 2, 2, 2),
        conv_norm="layer",
        conv_bias=True,
        pre_norm=True,
        normalize_waveform=True,
        position_kernel=32,
        position_groups=8,
        dropout=0.0,
        attention_dropout=0.0,
        input_dropout=0.0,
        layer_drop=0.0,
    )
    config.objective = dict(
        name="speech_contrast",
        masking=dict(rate=0.65, length=6),
        quantizer=dict(groups=2, entries=64, width=64),
        temperature=dict(start=2.0, decay=0.999, floor=0.5),
        projection_dim=64,
        num_negatives=20,
        feature_penalty=0.0,
        feature_dropout=0.0,
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
    seen, held_out = (dict(without_speakers=HELD_OUT), dict(speakers=HELD_OUT))
    probe = dict(
        name="linear_probe", feature="weighted_sum", batch_size=64, baselines=("mfcc", "random")
    )
    config.evaluators = {
        "digits": dict(probe, train=digits("train", **seen), test=digits("train", **held_out)),
        "speakers": dict(probe, train=digits("train"), test=digits("test"), target="speaker"),
    }
    config.checkpoint = dict(every={"percent": 50}, keep_last=1)
    config.log = dict(every={"steps": 20})
    config.hardware = hardware.section()
    config.deadlines = {}
    if {"ctc", "scratch"} & set(names):
        _spelling(config, "scratch" in names)
    return hardware.apply(config, ",".join(n for n in names if n not in ("ctc", "scratch")))


def digits(split, **which):
    """Spoken digits that ship: 8 kHz, six speakers."""
    return dict(name="audio", path="sample:digits", split=split, **which)


def _spelling(config, scratch):
    config.duration = {"steps": 300}
    spelt = dict(characters="letters", max_targets=8, samples_per_frame=80)
    config.preprocessing.update(spelt)
    *others, crop = config.data.transforms
    config.data.transforms = (*others, dict(name="spell_transcript"), crop)
    config.objective = dict(
        name="ctc",
        time_masking=dict(rate=0.3, length=6),
        channel_masking=dict(rate=0.2, length=16, min_spans=0),
        freeze_features=not scratch,
    )
    config.optimizer.lr = 5e-4
    test = digits("test", speakers=HELD_OUT)
    config.evaluators = {"held_out": dict(name="ctc", test=test, batch_size=64)}
    if not scratch:
        config.init_from = dict(
            path="runs/demo_speech", load=((r"encoder/.*", True),), fresh=(r"head/.*",)
        )


def sweep():
    """Three seeds of the pre-training."""
    return sweeps.grid({"seed": (0, 1, 2)}, metric="eval/digits/accuracy")
