"""The commands that run encoders of speech over clips."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import soundfile

import encoders
from configs import demo_speech
from encoders.data import AudioPreprocessing
from encoders.data.sources.units import UnitStore
from encoders.errors import CheckpointError, ConfigError, DataError
from encoders.evaluation.transcription import text_of
from tests.data.bad_clips import REASONS, write_bad
from tools import clips, cluster, embed, embed_clips, transcribe

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
HUBERT, LETTERS = (str(GOLDEN / "speech" / name) for name in ("hubert", "wav2vec2_ctc"))
RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six clips of two classes, a broken one, and one of 8 kHz with two channels."""
    root = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(6):
        directory = root / ("high" if number % 2 else "low")
        directory.mkdir(exist_ok=True)
        time = np.arange(1200 + 300 * number) / RATE
        wave = 0.3 * np.sin(2 * np.pi * (3000 if number % 2 else 300) * time)
        wave += 0.01 * rng.normal(size=len(time))
        soundfile.write(directory / f"{number}.wav", wave, RATE)
    stereo = np.stack([wave[::2]] * 2, 1)
    soundfile.write(root / "high" / "9.wav", stereo, RATE // 2)
    (root / "low" / "1b.wav").write_bytes(b"RIFF broken")
    return root


def names(paths):
    return [pathlib.Path(path).name for path in paths]


def test_batches_are_of_similar_lengths(folder):
    # Of the first four, none is long enough to train on.
    preprocessing = dataclasses.replace(encoders.load(HUBERT).preprocessing, min_samples=2300)
    found = clips.open_clips(
        str(folder), "train", preprocessing, least=400, most=10**6, flag="--input"
    )
    batches = list(clips.clip_batches(found, 4, shards=2))
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == [0, 1, 2, 3, 4, 6, 7]
    assert [len(batch.waveform) for batch in batches] == [4, 4]
    assert batches[0].length.min() >= batches[1].length.max()
    assert batches[1].waveform.shape == (4, 2048)
    np.testing.assert_array_equal(batches[1].waveform[3], batches[1].waveform[2])  # fills it
    [why] = found.corrupt
    assert "1b.wav: no sound file" in why
    found = dataclasses.replace(found, most=2300, corrupt=[])
    batches = list(clips.clip_batches(found, 4))
    assert [batch.waveform.shape[1] for batch in batches] == [2300]  # no power of two
    assert sum("seconds, expected at most 0.14375" in why for why in found.corrupt) == 3


def test_clusters_of_cepstra_tell_pitches_apart(folder, tmp_path, capsys):
    output = tmp_path / "units"
    flags = ["--clusters", "2", "--data", str(folder), "--output", str(output), "--restarts", "3"]
    cluster.main(["--features", "mfcc", *flags, "--method", "full"])
    out = capsys.readouterr().out
    assert "units of 7 clips, 100 a second, 2 of 2 clusters used" in out
    assert "of 2 labels: purity 100.0%" in out
    assert "1 clip left out, such as" in out
    store = UnitStore(output)
    info = json.loads((output / "info.json").read_text())
    assert (info["features"], info["normalized"]) == ("mfcc", False)
    assert info["pnmi"] == pytest.approx(1, abs=1e-6)
    sizes = dict(zip(names(store.names), map(store.get, store.names), strict=True))
    assert sizes["1b.wav"] is None
    for number in range(6):
        assert len(sizes[f"{number}.wav"]) == 1 + (1200 + 300 * number - 400) // 160
    assert sizes["9.wav"][0] == sizes["5.wav"][0]
    with pytest.raises(ConfigError, match=r"--output .* exists"):
        cluster.main(["--features", "mfcc", *flags])
    normalized = cluster._of_mfcc(RATE, normalize=True)
    wave = np.random.default_rng(0).normal(size=(1, 1200)).astype(np.float32)
    batch = {"waveform": wave, "length": np.array([1200], np.int32)}
    found, _ = jax.jit(normalized.function)({}, batch)
    np.testing.assert_allclose(found[0, :, :13].mean(0), 0, atol=1e-5)
    assert normalized.made_of["normalized"]


def test_clusters_of_a_layer(folder, tmp_path, capsys):
    output = tmp_path / "units"
    flags = ["--clusters", "5", "--data", str(folder), "--output", str(output), "--seed", "1"]
    cluster.main(["--model", HUBERT, "--layer", "1", "--normalize", "--fraction", "0.6", *flags])
    encoder = encoders.load(HUBERT)
    assert f"{RATE / encoder.module.stride:g} a second" in capsys.readouterr().out
    centroids = np.load(output / "centroids.npy")
    store = UnitStore(output)
    assert (store.info["layer"], store.info["normalized"]) == (1, True)
    name = next(name for name in store.names if name.endswith("4.wav"))
    waveform = soundfile.read(name, dtype="int16")[0]
    frames = np.asarray(encoder(waveform[None], layers=(1,)).hidden[1][0])
    frames = (frames - frames.mean(0)) / np.sqrt(frames.var(0) + 1e-5)
    distance = np.square(frames[:, None] - centroids).sum(-1)
    chosen = np.take_along_axis(distance, store.get(name)[:, None], 1)[:, 0]
    np.testing.assert_allclose(chosen, distance.min(1), atol=1e-4)
    flags = ["--clusters", "99999", "--data", str(folder), "--output", str(tmp_path / "x")]
    with pytest.raises(DataError, match="--clusters 99999: need as many frames"):
        cluster.main(["--model", HUBERT, "--layer", "1", *flags])


@pytest.mark.parametrize("most", [12, 7, 5, 2])
def test_frames_are_joined_and_not_there_twice(most):
    rows = np.arange(24.0, dtype=np.float32).reshape(12, 2)
    parts = np.split(rows, [2, 5, 5, 9])
    np.testing.assert_array_equal(cluster._joined(parts, most), rows[:most])
    assert not parts


def test_transcripts_are_those_of_each_clip_alone(folder, tmp_path, capsys):
    # Random weights find nothing but blanks, so letters get more.
    encoder = encoders.load(LETTERS)
    head = {**encoder.heads["head"]}
    letters = [token.isalpha() and len(token) == 1 for token in encoder.preprocessing.opened.tokens]
    head["bias"] = np.asarray(head["bias"]) + 100.0 * np.array(letters)
    encoder = dataclasses.replace(encoder, heads={"head": head})
    model = str(tmp_path / "model")
    encoders.save(encoder, model, heads=True)
    transcribe.main(["--model", model, "--input", str(folder), "--batch-size", "4"])
    captured = capsys.readouterr()
    lines = [line.split("\t") for line in captured.out.splitlines()]
    assert names(line[0] for line in lines) == [f"{n}.wav" for n in (1, 3, 5, 9, 0, 2, 4)]
    assert "left out: " in captured.err
    assert "1 of 8 clips left out" in captured.err
    for path, text in lines[:3]:
        tokens = encoder(soundfile.read(path, dtype="int16")[0][None]).tokens[0]
        best = np.asarray(tokens @ head["kernel"] + head["bias"]).argmax(-1)
        assert encoder.preprocessing.opened.decode(best) == text
        assert text
    assert text_of(np.array([-1]), encoder.preprocessing.opened) == ""

    transcribe.main(["--model", model, "--input", lines[0][0]])
    assert capsys.readouterr().out.splitlines() == ["\t".join(lines[0])]
    with pytest.raises(DataError, match="none of 1 clips could be read"):
        transcribe.main(["--model", model, "--input", lines[0][0], "--max-seconds", "0.01"])
    assert "0.1 seconds, expected at most 0.01" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot transcribe"):
        transcribe.main(["--model", HUBERT, "--input", str(folder)])


def test_bad_clips_are_named_and_not_transcribed(tmp_path, capsys):
    reasons = {k: v for k, v in REASONS.items() if k not in ("stereo", "rate")}  # which it converts
    for kind in reasons:
        write_bad(tmp_path, kind)
    least = encoders.load(LETTERS).module.receptive_field
    soundfile.write(tmp_path / "short.wav", np.zeros(least - 1, np.int16), RATE)
    reasons["short"] = f"{least - 1} samples, expected at least {least}"
    with pytest.raises(DataError, match=f"none of {len(reasons)} clips could be read"):
        transcribe.main(["--model", LETTERS, "--input", str(tmp_path)])
    said = capsys.readouterr().err
    for kind, reason in reasons.items():
        assert re.search(rf"left out: .*{kind}\.wav: .*({reason})", said)


def test_frames_for_abx(folder, tmp_path, capsys):
    flags = ["--model", HUBERT, "--input", str(folder), "--layer", "0", "--tokens"]
    embed.main([*flags, "--output", str(tmp_path / "x.npz")])
    with np.load(tmp_path / "x.npz") as file:
        found = dict(file)
    assert names(found["names"]) == [f"{n}.wav" for n in (1, 3, 5, 9, 0, 2, 4)]
    assert names(found["corrupt"]) == ["1b.wav"]
    np.testing.assert_array_equal(found["labels"], [0, 0, 0, 0, 1, 1, 1])
    ends = np.cumsum(found["lengths"])
    assert ends[-1] == len(found["frames"])
    mean = found["frames"][ends[0] : ends[1]].mean(0)
    np.testing.assert_allclose(found["features"][1], mean, atol=1e-5)
    embed.main([*flags, "--output", str(tmp_path / "frames")])
    assert "7 files" in capsys.readouterr().out
    one = np.load(tmp_path / "frames" / "3.npy")
    np.testing.assert_allclose(one, found["frames"][ends[0] : ends[1]], atol=1e-5)
    broken = ["--model", HUBERT, "--input", str(folder / "low" / "1b.wav")]
    with pytest.raises(DataError, match=r"no usable clip; the first: .*1b\.wav: no sound"):
        embed.main([*broken, "--output", str(tmp_path / "none")])
    with pytest.raises(ConfigError, match="clips have no pictures"):
        embed.main([*flags, "--output", str(tmp_path / "y.npz"), "--map", str(tmp_path / "m.html")])


def test_files_of_frames_are_named_by_shard_and_record(tmp_path):
    """Both shards of a prepared set have a first record."""
    written = {}
    for name in ("d/train-0.array_record record 0", "d/train-1.array_record record 0", "d/a.wav"):
        embed_clips._write_one(tmp_path, name, np.zeros((2, 3)), written)
    assert {path.name for path in tmp_path.iterdir()} == {
        "train-0-0.npy", "train-1-0.npy", "a.npy"
    }  # fmt: skip
    with pytest.raises(DataError, match=r"e/a\.wav and d/a\.wav would both be"):
        embed_clips._write_one(tmp_path, "e/a.wav", np.zeros((2, 3)), written)


def test_clips_longer_than_an_encoder_hears_are_left_out(tmp_path, capsys):
    whisper = str(GOLDEN / "whisper" / "hf")  # up to 7680 samples
    for samples in (5000, 9000):  # of which no batch may be 8192 long
        soundfile.write(tmp_path / f"{samples}.wav", np.zeros(samples, np.int16), RATE)
    embed.main(["--model", whisper, "--input", str(tmp_path), "--output", str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["5000.npy"]
    assert "9000.wav: 0.6 seconds, expected at most 0.48" in capsys.readouterr().out
    module = cluster._of_model(whisper, None).encoder
    assert clips.longest(module, 60.0, RATE) == 7680
    assert clips.longest(module, 0.1, RATE) == clips.longest(None, 0.1, RATE) == RATE // 10
    with pytest.raises(ConfigError, match="--max-seconds: expected a number above 0, got 0"):
        clips.longest(None, 0.0, RATE)


def test_the_clips_that_a_config_trains_on():
    config = "configs/demo_speech.py"  # whose units are not there yet
    source = cluster._training_source(str(ROOT / config), AudioPreprocessing(sample_rate=8000))
    assert len(source) == 4 * 480
    held_out = {source.clips.speaker_names.index(name) for name in demo_speech.HELD_OUT}
    assert not held_out & {source[i]["speaker"] for i in range(0, len(source), 80)}
    units = dict(name="units", path="x", source=dict(name="audio", path="y"))
    section = dict(
        name="mixture",
        sources=(units, dict(units, stop=0.9)),
    )
    parts = cluster._without_units(section, config)["sources"]
    assert parts == (units["source"], dict(units["source"], stop=0.9))
    with pytest.raises(ConfigError, match="trains on no clips of sound"):
        cluster._training_source(str(ROOT / "configs/demo.py"), None)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--clusters", "0"], "--clusters: expected a number from 1"),
        (["--clusters", "2", "--fraction", "2"], "--fraction"),
        (["--clusters", "2", "--layer", "3"], "--layer: is of --model"),
        (["--clusters", "2", "--config", "c.py"], "not allowed with"),
    ],
)
def test_mistakes(flags, message, tmp_path):
    given = ["--features", "mfcc", "--data", "x", "--output", str(tmp_path / "u"), *flags]
    with pytest.raises(ConfigError, match=message):
        cluster.main(given)
    vit = str(GOLDEN / "interop" / "hf_vit")
    with pytest.raises(CheckpointError, match="encodes no sound"):
        clips.preprocessing_of(encoders.load(vit), vit)
