"""Clips become records at one rate, with an index of lengths and speakers."""

import dataclasses
import importlib.util
import json
import re

import numpy as np
import pytest
import soundfile

from encoders.data import AudioPreprocessing, sound
from encoders.data.sources import Source
from encoders.data.sources.array_record import ArrayRecord
from encoders.data.sources.audio import Audio
from encoders.errors import ConfigError, DataError
from tests.data.bad_clips import REASONS, write_bad
from tools.prepare_data import main
from tools.preparing.audio import AudioRecipe
from tools.preparing.shards import prepare


def wave(samples, rate=16000):
    return np.round(9000 * np.sin(2 * np.pi * 300 * np.arange(samples) / rate)).astype(np.int16)


def command(source, target, *more, kind="audio"):
    return ["--from", kind, "--input", str(source), "--to", str(target), *map(str, more)]


@pytest.fixture
def corpus(tmp_path):
    """Five clips of LibriSpeech's layout; one at 8 kHz, one stereo, one cut short."""
    folder = tmp_path / "corpus/19/198"
    folder.mkdir(parents=True)
    lines = []
    for number in range(5):
        samples, rate = wave(1000 + number), 16000
        if number == 1:
            samples, rate = wave(1000, 8000), 8000
        if number == 2:
            samples = np.stack([samples, samples], -1)
        soundfile.write(folder / f"19-198-{number:04d}.flac", samples, rate)
        lines.append(f"19-198-{number:04d} CLIP {'ABCDE'[number]}")
    cut = folder / "19-198-0003.flac"
    cut.write_bytes(cut.read_bytes()[:100])
    (folder / "19-198.trans.txt").write_text("\n".join(lines))
    return tmp_path / "corpus"


def test_clips_become_records(corpus, tmp_path, capsys):
    target = tmp_path / "out"
    arguments = command(corpus, target, "--shards", 2)
    main(arguments)
    said = capsys.readouterr().out
    assert "19-198-0002.flac: stereo, expected one channel" in said
    assert "19-198-0003.flac: no sound file that can be decoded" in said
    assert f"{target}: 3 clips, 0.00 hours of split 'train' in 2 shards" in said
    source = Audio(path=str(target))
    assert source.lengths(16000).tolist() == [1000, 2000, 1004]
    assert source.lengths(8000).tolist() == [500, 1000, 502]
    assert source.speaker_names == ("19",)
    assert [source[i]["transcript"] for i in range(3)] == ["CLIP A", "CLIP B", "CLIP E"]
    decode = AudioPreprocessing(max_samples=3000).eval_transforms()[0]
    found = [decode(source[i], None) for i in range(3)]
    np.testing.assert_array_equal(found[0]["waveform"], wave(1000))
    np.testing.assert_array_equal(found[2]["waveform"], wave(1004))
    assert len(found[1]["waveform"]) == 2000
    assert np.abs(found[1]["waveform"][200:1800] - wave(2000)[200:1800]).max() < 200
    raw = ArrayRecord(path=str(target))[0]
    assert raw["speaker"] == "19"
    assert sound.decode(raw["audio"])[1] == 16000
    main(arguments)
    assert "already has split 'train'" in capsys.readouterr().out


def test_clips_of_unknown_speakers(tmp_path, caplog):
    """In a table of which each shard gets another part, and where some have none."""
    rows, speakers = ["path,speaker"], ("", "ann", "ben", "", "", "ann")
    for number, speaker in enumerate(speakers):
        soundfile.write(tmp_path / f"{number}.wav", wave(1000 + number), 16000)
        rows.append(f"{number}.wav,{speaker}")
    table = tmp_path / "clips.csv"
    table.write_text("\n".join(rows))
    main(command(table, tmp_path / "out", "--shards", 3))
    for path in (table, tmp_path / "out"):
        every = Audio(path=str(path))
        assert every.speaker_names == ("ann", "ben")
        assert [every[i]["speaker"] for i in range(6)] == [-1, 0, 1, -1, -1, 0]
        ann = Audio(path=str(path), speakers=("ann",))
        assert ann.lengths(16000).tolist() == [1001, 1005]
        assert [ann[i]["speaker"] for i in range(2)] == [0, 0]
        assert not caplog.messages
        others = Audio(path=str(path), without_speakers=("ann",))
        assert others.lengths(16000).tolist() == [1000, 1002, 1003, 1004]
        assert "3 clips of unknown speakers" in caplog.text
        caplog.clear()


def test_channels_and_rate_on_request(corpus, tmp_path):
    main(command(corpus, tmp_path / "out", "--mix", "--rate", 8000))
    source = Audio(path=str(tmp_path / "out"))
    assert source.lengths(8000).tolist() == [500, 1000, 501, 502]
    with pytest.raises(DataError, match=r"--rate: .* holds clips of 8000"):
        main(command(corpus, tmp_path / "out", "--split", "test"))
    with pytest.raises(ConfigError, match="--quality: means nothing to --from audio"):
        main(command(corpus, tmp_path / "other", "--quality", 90))
    with pytest.raises(ConfigError, match="--rate: means nothing to --from folder"):
        main(command(corpus, tmp_path / "other", "--rate", 8000, kind="folder"))


def test_bad_clips_are_named_and_left_out(tmp_path, capsys):
    folder = tmp_path / "clips"
    folder.mkdir()
    kept = ("short", "rate")  # any length will do, and rates are converted
    for kind in REASONS:
        write_bad(folder, kind)
    main(command(folder, tmp_path / "out"))
    said = capsys.readouterr().out
    for kind, reason in REASONS.items():
        found = re.search(rf"{kind}\.wav: .*({reason})", said)
        assert (found is None) == (kind in kept)
    assert f"left out {len(REASONS) - 2} of {len(REASONS)} examples" in said
    assert len(Audio(path=str(tmp_path / "out"))) == 2


def test_interrupted_and_run_again(corpus, tmp_path, capsys):
    main(command(corpus, tmp_path / "whole", "--shards", 3))
    main(command(corpus, tmp_path / "out", "--shards", 3))
    # As an interruption before the last shard leaves it.
    info = json.loads((tmp_path / "out/info.json").read_text())
    split = info["splits"].pop("train")
    kept = {shard.pop("file"): {**shard, "corrupt": []} for shard in split["shards"][:2]}
    (tmp_path / "out/info.json").unlink()
    progress = {"job": split["job"], "finished": kept}
    (tmp_path / "out/.train.progress.json").write_text(json.dumps(progress))
    for file in (tmp_path / "out").glob("train-00002*"):
        file.unlink()
    main(command(corpus, tmp_path / "out", "--shards", 3))
    assert "going on: 2 of 3 shards" in capsys.readouterr().out
    whole, again = (Audio(path=str(tmp_path / name)) for name in ("whole", "out"))
    assert again.lengths(16000).tolist() == whole.lengths(16000).tolist()
    assert again.speaker_names == whole.speaker_names


def test_a_damaged_index_is_explained(corpus, tmp_path):
    main(command(corpus, tmp_path / "out"))
    [index] = (tmp_path / "out").glob("*.index.npz")
    np.savez_compressed(index.open("wb"), lengths=np.ones(2, np.uint32))
    with pytest.raises(DataError, match="list 2 clips, but the shards hold 3"):
        Audio(path=str(tmp_path / "out"))
    index.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is damaged"):
        Audio(path=str(tmp_path / "out"))


@dataclasses.dataclass(kw_only=True, eq=False)
class Speech(Source):
    """Clips as TFDS gives those of its librispeech."""

    def _count(self):
        return 3

    def _read(self, index):
        samples = wave(800 + index, 8000).astype(np.int64)
        return {"speech": samples, "text": f"CLIP {index}".encode(), "speaker_id": 40 + index % 2}


def test_librispeech_of_tfds(tmp_path):
    source = Speech()
    job = {"kind": "tfds", "count": 3, "shards": 1}
    prepare(AudioRecipe(source, job, 16000, source_rate=8000), tmp_path, "train", threads=1)
    found = Audio(path=str(tmp_path))
    assert found.lengths(8000).tolist() == [800, 801, 802]
    assert found.speaker_names == ("40", "41")
    assert [found[i]["speaker"] for i in range(3)] == [0, 1, 0]
    assert found[2]["transcript"] == "CLIP 2"


def test_sound_of_tfds_without_tensorflow_is_explained(tmp_path):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is there")
    with pytest.raises(DataError, match=r"TensorFlow to read 'librispeech'.*tensorflow-cpu"):
        main(command("librispeech", tmp_path, kind="tfds"))
