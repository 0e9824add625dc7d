"""Clips of sound: files, tables, prepared sets, what is wrong with them, and what they become."""

import csv
import io
import json
import logging
import re
import types

import jax
import numpy as np
import pytest
import soundfile

from encoders.config import build
from encoders.data import PREPROCESSING, SOURCES, AudioPreprocessing, Pipeline, build_transforms
from encoders.data.characters import Characters
from encoders.data.sources import CorruptExample
from encoders.data.sources.audio import Audio
from encoders.errors import ConfigError, DataError
from tests.data.bad_clips import RATE, REASONS, tone, write_bad

CROP = [{"name": "decode_audio"}, {"name": "crop_audio"}]
SPELL = [CROP[0], {"name": "spell_transcript"}, CROP[1]]


def write(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def decoded(path, **fields):
    preprocessing = AudioPreprocessing(**{"max_samples": 4000, **fields})
    example = Audio(path=str(path))[0]
    for transform in preprocessing.eval_transforms():
        example = transform(example, None)
    return example


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_folder_of_classes(tmp_path, ending):
    for number, name in enumerate(("no", "yes")):
        write(tmp_path / name / f"a.{ending}", tone(1000 + number))
    source = Audio(path=str(tmp_path))
    assert source.class_names == ("no", "yes")
    assert [source[i]["label"] for i in range(2)] == [0, 1]
    assert source.speakers_of() is None
    assert source.lengths(RATE).tolist() == [1000, 1001]
    assert source.lengths(RATE // 2).tolist() == [500, 501]
    example = decoded(tmp_path)
    assert example["length"] == 1000
    np.testing.assert_array_equal(example["waveform"][:1000], tone(1000))
    assert not example["waveform"][1000:].any()


def test_librispeech(tmp_path):
    for name in ("84-1-0000", "84-1-0001", "85-2-0000"):
        speaker, chapter, _ = name.split("-")
        write(tmp_path / speaker / chapter / f"{name}.flac", tone(800))
    (tmp_path / "84/1/84-1.trans.txt").write_text("84-1-0000 HE WAS\n84-1-0001 SO\n")
    (tmp_path / "85/2/85-2.trans.txt").write_text("85-2-0000 FAR\n85-2-0009 GONE\n")
    source = Audio(path=str(tmp_path))
    assert source.speaker_names == ("84", "85")
    found = [(source[i]["transcript"], source[i]["speaker"]) for i in range(3)]
    assert found == [("HE WAS", 0), ("SO", 0), ("FAR", 1)]
    with pytest.raises(CorruptExample, match="cannot be read"):
        source[3]
    held_out = Audio(path=str(tmp_path), without_speakers=("84",))
    assert len(held_out) == 2
    assert held_out[0]["speaker"] == 1
    with pytest.raises(ConfigError, match=r"no speaker '48'"):
        Audio(path=str(tmp_path), speakers=("48",))


def test_ljspeech(tmp_path, caplog):
    write(tmp_path / "wavs/LJ001-0001.wav", tone(900), 22050)
    rows = ["LJ001-0001|Dr. No|Doctor No", "LJ001-0002|not|here"]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    with caplog.at_level(logging.WARNING):
        source = Audio(path=str(tmp_path))
    assert len(source) == 1
    assert source[0]["transcript"] == "Doctor No"
    assert "1 of 2 rows have no file" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables(tmp_path, kind, monkeypatch):
    write(tmp_path / "clips/a.wav", tone(700))
    paths = ["clips/a.wav", "../a.wav", str(tmp_path / "clips/a.wav")]
    rows = [
        {"path": path, "text": "one two", "label": label, "speaker": "ann"}
        for path, label in zip(paths, ("yes", "no", "yes"), strict=True)
    ]
    table = tmp_path / f"table.{kind}"
    with open(table, "w", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    monkeypatch.chdir(tmp_path)
    source = Audio(path=table.name)  # relative, and one of its rows is absolute
    assert source.class_names == ("no", "yes")
    assert source.speaker_names == ("ann",)
    assert {k: v for k, v in source[2].items() if k != "audio"} == {
        "transcript": "one two", "label": 1, "speaker": 0,
    }  # fmt: skip
    with pytest.raises(CorruptExample, match="leads out of the folder"):
        source[1]
    (tmp_path / "bad.csv").write_text("file,text\na.wav,b\n")
    with pytest.raises(DataError, match="no column 'path'"):
        Audio(path=str(tmp_path / "bad.csv"))
    with pytest.raises(DataError, match=r"no row .* below 'elsewhere'; set folder to where"):
        Audio(path=_table(tmp_path, "/a.wav", "../b.wav"), folder="elsewhere")


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("nemo.jsonl", ("audio_filepath", "text", "duration")),
        ("common_voice.tsv", ("path", "sentence", "up_votes", "client_id")),
        ("metadata.csv", ("file_name", "transcription")),
    ],
)
def test_tables_of_others(tmp_path, name, header):
    write(tmp_path / "a.wav", tone(700))
    row = ("a.wav", "one two", "1", "ann")[: len(header)]
    mark = "\t" if name.endswith("tsv") else ","
    lines = [mark.join(header), mark.join(row)]
    if name.endswith("jsonl"):
        lines = [json.dumps(dict(zip(header, row, strict=True)))]
    (tmp_path / name).write_text("\n".join(lines))
    source = Audio(path=str(tmp_path / name))
    assert source[0]["transcript"] == "one two"
    assert source.speaker_names == (("ann",) if "client_id" in header else None)


@pytest.mark.parametrize(
    ("suffix", "said"), [(".wrd", "ONE TWO\nSO"), (".ltr", "O N E | T W O |\nS O |")]
)
def test_a_manifest_of_fairseq(tmp_path, suffix, said):
    for file in ("1/a.wav", "b.wav", "../secret.wav"):
        write(tmp_path / "clips" / file, tone(700))
    manifest = tmp_path / "lists/train.tsv"
    manifest.parent.mkdir()
    manifest.write_text(f"{tmp_path}/clips\n1/a.wav\t700\n../secret.wav\t700\nb.wav\t700\n")
    source = Audio(path=str(manifest))
    assert len(source) == 3
    assert "transcript" not in source[0]
    with pytest.raises(CorruptExample, match="leads out of the folder"):
        source[1]
    assert source.describe(1).endswith("train.tsv row 3")
    said_file = manifest.with_suffix(suffix)
    said_file.write_text(said)
    with pytest.raises(DataError, match=r"has 2 lines, .*train.tsv' 3 clips"):
        Audio(path=str(manifest))
    said_file.write_text(said.replace("\n", "\nx\n"))
    source = Audio(path=str(manifest))
    assert [source[i]["transcript"] for i in (0, 2)] == ["ONE TWO", "SO"]


def _table(folder, *paths):
    (folder / "paths.csv").write_text("\n".join(("path", *paths)))
    return str(folder / "paths.csv")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no directory .*expected a folder or a table of clips"):
        Audio(path=str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"no clips in .*\.flac, \.wav"):
        Audio(path=str(tmp_path))
    (tmp_path / "info.json").write_text(json.dumps({"splits": {"train": {"shards": []}}}))
    with pytest.raises(DataError, match="--from audio"):
        Audio(path=str(tmp_path))


def test_samples_that_ship():
    source = Audio(path="sample:digits")
    test = Audio(path="sample:digits", split="test")
    assert (len(source), len(test)) == (720, 300)
    assert source.class_names[7] == "seven"
    assert len(source.speaker_names) == 6
    labels = [test[i]["label"] for i in range(300)]
    assert np.bincount(labels).tolist() == [30] * 10
    chosen = dict(path="sample:digits", split="test", speakers=("theo", "lucas"))
    for fields in ({}, {"start": 0.3, "stop": 0.7}):
        part = Audio(**chosen, **fields)
        speakers = [part[i]["speaker"] for i in range(len(part))]
        assert set(speakers) == {2, 4}
        assert part.speakers_of().tolist() == speakers
    spoken = AudioPreprocessing(
        sample_rate=8000, max_samples=8000, characters="letters", samples_per_frame=160
    )
    example = source[100]
    for transform in spoken.eval_transforms():
        example = transform(example, None)
    assert example["length"] == source.lengths(8000)[100]
    targets = example["targets"][: example["target_length"]]
    said = source.class_names[example["label"]]
    assert spoken.opened.decode(targets, collapse=False).lower() == said
    sentences = Audio(path="sample:ljspeech", split="test")
    assert sentences[0]["transcript"] == "in being comparatively modern."


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", REASONS)
def test_bad_files_are_corrupt(tmp_path, kind):
    write_bad(tmp_path, kind)
    with pytest.raises(CorruptExample, match=REASONS[kind]):
        decoded(tmp_path)


def test_channels_can_be_mixed_and_rates_converted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_bad(tmp_path / "a", "stereo")
    mixed = decoded(tmp_path / "a", mix=True)["waveform"]
    assert np.abs(mixed[:3000] - 0.75 * tone(3000)).max() <= 1
    write_bad(tmp_path / "b", "rate")
    converted = decoded(tmp_path / "b", resample=True, max_samples=8000)
    assert converted["length"] == 6000
    assert abs(int(np.abs(converted["waveform"][500:5500]).max()) - 8000) < 20


def test_floats_are_scaled(tmp_path):
    wave = (tone(1000) / 32768).astype(np.float32)
    write(tmp_path / "a.wav", wave, subtype="FLOAT")
    np.testing.assert_array_equal(decoded(tmp_path)["waveform"][:1000], tone(1000))


def test_bad_clips_are_counted_and_replaced(tmp_path, caplog):
    """In training: bad files, and bad transcripts of good ones."""
    reasons = {write_bad(tmp_path, kind).name: reason for kind, reason in REASONS.items()}
    rows = [(name, "so") for name in reasons]
    rows += [(f"good{number}.wav", "so") for number in range(4)]
    spelt = {
        "signs.wav": ("so 2", "outside the vocabulary"),
        "long.wav": ("so so", "needs 5 frames, and it has at most 4"),
        "silent.wav": ("", "no transcript"),
    }
    rows += [(name, text) for name, (text, _) in spelt.items()]
    reasons |= {name: reason for name, (_, reason) in spelt.items()}
    for name, _ in rows[len(REASONS) :]:
        write(tmp_path / name, tone(1000))
    with open(tmp_path / "clips.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "text"), *rows])
    preprocessing = AudioPreprocessing(max_samples=1200, characters="letters", max_targets=8)
    transforms = build_transforms(SPELL, preprocessing)
    source = Audio(path=str(tmp_path / "clips.csv"))
    pipeline = Pipeline(source, transforms, len(rows), seed=0, threads=0)
    with caplog.at_level(logging.WARNING):
        batch = pipeline.batch(0)
    assert batch["waveform"].shape == (len(rows), 1200)
    assert batch["waveform"].dtype == np.int16
    np.testing.assert_array_equal(batch["waveform"][:, :1000], [tone(1000)] * len(rows))
    found = {name.rpartition("/")[2]: why for name, why in pipeline.stats.names.items()}
    assert found.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert re.search(reason, found[name])
    assert pipeline.stats.corrupt >= len(reasons)
    assert "nan.wav: 500 samples are not finite; replaced" in caplog.text


# --- transforms -----------------------------------------------------------------------------------


def clip(samples, **fields):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.arange(samples, dtype=np.int16), RATE, format="FLAC")
    return {"audio": buffer.getvalue(), **fields}


def run(example, sections, preprocessing, seed=0):
    rng = np.random.default_rng(seed)
    for transform in build_transforms(sections, preprocessing):
        example = transform(example, rng)
    return example


def test_crops_are_random_in_training_and_units_follow():
    preprocessing = AudioPreprocessing(max_samples=1600)
    example = clip(16000, units=np.arange(49))
    starts = set()
    for seed in range(20):
        found = run(example, CROP, preprocessing, seed)
        start = int(found["waveform"][0])
        assert start % 320 == 0
        np.testing.assert_array_equal(found["waveform"], start + np.arange(1600))
        units = start // 320 + np.arange(5)
        np.testing.assert_array_equal(found["units"], np.where(units < 49, units, -1))
        starts.add(start)
    assert len(starts) > 10
    fixed = [CROP[0], {"name": "crop_audio", "random": False}]
    assert run(example, fixed, preprocessing)["waveform"][0] == 0
    assert len({int(run(clip(16000), CROP, preprocessing, s)["waveform"][0]) % 320
                for s in range(9)}) > 3  # fmt: skip
    short = run(clip(800, units=np.arange(2)), CROP, preprocessing)
    assert short["length"] == 800
    assert short["units"].tolist() == [0, 1, -1, -1, -1]


def test_speeds_change_lengths_within_their_bucket():
    preprocessing = AudioPreprocessing(max_samples=4000, min_samples=900)
    sections = [CROP[0], {"name": "change_speed", "least": 0.5, "most": 2.0}]

    def lengths(**fields):
        example = clip(1500, **fields)
        return [len(run(example, sections, preprocessing, seed)["waveform"]) for seed in range(40)]

    free, narrow = lengths(), lengths(bucket_samples=1600)
    assert min(free) == 900
    assert 2500 < max(free) <= 3000
    assert max(narrow) == 1600
    with pytest.raises(CorruptExample, match="units belong"):
        lengths(units=np.arange(4))


@pytest.mark.parametrize(
    ("text", "samples", "reason"),
    [
        ("naïve", 16000, "its transcript has 'Ï', outside the vocabulary"),
        ("hello", 1600, r"its transcript needs 6 frames, and it has at most 5 \(1600 samples\)"),
        ("hello there", 16000, "11 characters, more than max_targets=8"),
        ("hello", 20000, "20000 samples, of which its transcript needs all, and only 16000 fit"),
        ("  ", 16000, "no transcript"),
    ],
)
def test_transcripts_that_do_not_fit_are_corrupt(text, samples, reason):
    preprocessing = AudioPreprocessing(max_samples=16000, characters="letters", max_targets=8)
    with pytest.raises(CorruptExample, match=reason):
        run(clip(samples, transcript=text), SPELL, preprocessing)


def test_frames_are_counted_by_the_stride_alone():
    preprocessing = AudioPreprocessing(
        max_samples=16000, min_samples=2000, characters="letters", max_targets=8
    )
    found = run(clip(2240, transcript="hello"), SPELL, preprocessing)  # 6 frames of wav2vec 2.0
    assert found["target_length"] == 5


def test_transcripts_are_spelt():
    preprocessing = AudioPreprocessing(
        max_samples=16000, characters="letters", max_targets=12, strip_punctuation=True
    )
    found = run(clip(9000, transcript="It's, well\n- so"), SPELL, preprocessing)
    characters = preprocessing.opened
    assert found["target_length"] == 12
    assert found["targets"].dtype == np.int32
    assert characters.decode(found["targets"], collapse=False) == "IT'S WELL SO"
    with pytest.raises(CorruptExample, match="no transcript but punctuation"):
        run(clip(9000, transcript="- ..."), SPELL, preprocessing)
    with pytest.raises(ConfigError, match=r"preprocessing\.characters"):
        run(clip(9000, transcript="x"), SPELL, AudioPreprocessing(max_samples=16000))


# --- characters and preprocessing -----------------------------------------------------------------


def test_ctc_is_collapsed(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "|": 2, "[PAD]": 4}))
    characters = Characters.load(str(tmp_path))
    assert characters.blank == 4
    assert characters.size == 5
    assert characters.decode([4, 0, 0, 4, 0, 1, 2, 2, 4, 2, 1, 3]) == "aab b"
    assert characters.encode("AB  b").tolist() == [0, 1, 2, 1]
    assert Characters.load(characters.to_json()) == characters
    phones = Characters.load(json.dumps({"<pad>": 0, "t": 1, "tʃ": 2, "I:": 3, "ɪ": 4, "E": 5}))
    assert phones.encode("tʃ  ɪ t I:", strip_punctuation=True).tolist() == [2, 4, 1, 3]
    assert phones.decode([2, 2, 0, 2, 4, 3]) == "tʃ tʃ ɪ I:"
    with pytest.raises(ValueError, match="'e', 'i:', outside the vocabulary"):
        phones.encode("t e i:")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ('{"a": 0}', ConfigError, "expected '<pad>' or"),
        ('{"a": 0, "<pad>": 0}', DataError, "different ids from 0"),
        ('{"ab": 0, "<pad>": 1, "|": 2}', DataError, "tokens of one character.*'ab'"),
        ('{"a b": 0, "<pad>": 1}', DataError, "tokens of one character.*'a b'"),
        ("{", DataError, "not valid JSON"),
        ("nowhere.json", DataError, "nowhere.json cannot be read"),
    ],
)
def test_other_vocabularies_are_explained(content, error, message):
    with pytest.raises(error, match=message):
        Characters.load(content)


def test_preprocessing_travels():
    ours = AudioPreprocessing(max_samples=9600, bucket_samples=(4800, 9600), characters="letters")
    again = build(PREPROCESSING, json.loads(json.dumps(ours.to_json())), "preprocessing")
    assert again.opened == ours.opened
    assert again.bucket_samples == (4800, 9600)
    assert ours.num_units(9600) == 30
    np.testing.assert_array_equal(
        ours.normalize(np.array([-32768, 16384], np.int16)), np.array([-1, 0.5], np.float32)
    )
    (waveform,), named = ours.encoder_inputs(ours.example_batch(2))
    assert waveform.shape == named["mask"].shape == (2, 9600)
    assert named["mask"].all()


def test_the_mask_of_samples_is_no_constant_of_a_traced_step():
    batch = {"waveform": np.zeros((2, 900), np.int16), "length": np.array([900, 400], np.int32)}
    found = AudioPreprocessing.encoder_inputs(batch)[1]["mask"]
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found.sum(1), batch["length"])
    assert not jax.make_jaxpr(AudioPreprocessing.encoder_inputs)(batch).consts
    again = jax.jit(AudioPreprocessing.encoder_inputs)(batch)[1]["mask"]
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_samples": 300}, "max_samples: expected at least min_samples=400"),
        ({"sample_rate": 0}, "sample_rate: expected a positive number"),
        ({"bucket_samples": (500, 700)}, "bucket_samples: expected ascending .*max_samples=250000"),
    ],
)
def test_contradictory_preprocessing_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        AudioPreprocessing(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample_rate": 8000}, "sample_rate: the encoder hears 16000"),
        ({"max_samples": 250_001}, "max_samples: the encoder takes clips of up to 250000"),
        ({"min_samples": 399}, "min_samples: the encoder makes a token of no less than 400"),
        ({"samples_per_frame": 160, "characters": "letters"}, "samples_per_frame: .* is 320"),
    ],
)
def test_encoders_that_need_other_clips_are_refused(fields, message):
    encoder = types.SimpleNamespace(
        sample_rate=16000, receptive_field=400, stride=320, max_samples=250_000
    )
    AudioPreprocessing().check(encoder)
    with pytest.raises(ConfigError, match=message):
        AudioPreprocessing(**fields).check(encoder)


def test_the_source_is_in_the_table():
    assert len(build(SOURCES, {"name": "audio", "path": "sample:digits"}, "data.source")) == 720
