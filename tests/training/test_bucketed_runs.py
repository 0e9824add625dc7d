"""The loop on clips in buckets: one program per length."""

import jax
import pytest
from ml_collections import ConfigDict

from encoders.config import build
from encoders.data import PREPROCESSING
from encoders.errors import ConfigError
from encoders.training import loop
from encoders.training.experiment import Experiment, build_objective
from encoders.training.loop import train
from encoders.training.metrics import read_metrics
from launch import session

SIZES = (3000, 5000)


def config(steps):
    model = dict(
        name="wav2vec2", width=16, depth=1, mlp_dim=16, num_heads=2, conv_dim=8,
        conv_kernels=(80, 8), conv_strides=(40, 8), position_kernel=4, position_groups=2,
    )  # fmt: skip
    sizes = dict(
        sample_rate=8000, max_samples=SIZES[-1], bucket_samples=SIZES, min_samples=400,
        samples_per_frame=320, characters="letters", max_targets=8,
    )  # fmt: skip
    return ConfigDict(
        dict(
            seed=1,
            duration={"steps": steps},
            batch_size=4,
            preprocessing=dict(name="audio", **sizes),
            data=dict(
                source=dict(name="audio", path="sample:digits"),
                transforms=tuple(
                    dict(name=name) for name in ("decode_audio", "spell_transcript", "crop_audio")
                ),
                threads=1,
            ),
            model=model,
            objective=dict(name="ctc", freeze_features=False),
            optimizer=dict(name="adamw", lr=1e-2, schedule=dict(name="constant")),
            checkpoint=dict(every={"steps": 100}),
            log=dict(every={"steps": 1}, tensorboard=False),
            evaluators={},
            hardware={},
            deadlines={},
        )
    )


def test_one_run_has_steps_of_both_lengths(tmp_path):
    experiment = Experiment(config(4), devices=jax.devices()[:1])
    train(experiment, tmp_path)
    records = [r for r in read_metrics(tmp_path) if "train/loss" in r]
    assert len(records) == 4
    assert SIZES[0] < records[-1]["train/row_samples"] < SIZES[1]
    assert 0 < records[-1]["train/padding"] < 0.5
    shares = experiment.pipeline().sizes
    assert set(shares) == set(SIZES)
    flops = [experiment.flops_per_example({size: 1.0}) for size in SIZES]
    assert flops[0] < experiment.flops_per_example(shares) < flops[1]


def test_every_length_is_compiled_ahead(monkeypatch, capsys):
    compiled = []

    def compile_step(experiment, state, batch):
        compiled.append({name: array.shape for name, array in batch.items()})
        return None, 1.0

    monkeypatch.setattr(loop, "compile_step", compile_step)
    given = config(4)
    given.batch_size = 8
    session.compile_only(given)
    assert [shapes["waveform"] for shapes in compiled] == [(8, size) for size in SIZES]
    assert {shapes["targets"] for shapes in compiled} == {(8, 8)}
    assert "for 2 lengths in 2.0 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "name", "fields", "message"),
    [
        ("model", "vit", {"width": 16}, "expected 'image', which model.name='vit' encodes, got"),
        ("model", "bert", {"vocab_size": 9}, "expected 'text', which model.name='bert' encodes"),
        ("preprocessing", "image", {}, "expected 'audio', .*, got what prepares 'image'"),
    ],
)
def test_encoders_of_something_else_are_refused(section, name, fields, message):
    given = config(4).to_dict() | {section: dict(fields, name=name)}
    preprocessing = build(PREPROCESSING, given["preprocessing"], "preprocessing")
    with pytest.raises(ConfigError, match=f"preprocessing.name: {message}"):
        build_objective(given, preprocessing)
