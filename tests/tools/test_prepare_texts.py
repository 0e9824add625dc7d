import json

import numpy as np
import pytest

from encoders.data import TextPreprocessing
from encoders.data.sources.tokens import Tokens
from encoders.data.token_store import TokenStore
from encoders.data.tokenizer import Tokenizer
from encoders.errors import ConfigError, DataError
from tools.make_samples import make_peps
from tools.prepare_data import main


def command(source, target, *more):
    return ["--from", "text", "--input", str(source), "--to", str(target), *map(str, more)]


@pytest.fixture
def corpus(tmp_path):
    """Eight documents in two files, one of which is no UTF-8, and one empty."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes(
        b"One two three.\nFour.\n\nFive six.\n\ncaf\xe9\n\nSeven eight.\n"
    )
    rows = [{"text": "Nine ten. Eleven."}, {"text": " "}, {"text": "Twelve <s>."}, {"text": "x"}]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_texts_become_tokens(corpus, tmp_path, capsys):
    target = tmp_path / "out"
    arguments = command(corpus, target, "--tokenizer", "sample:peps", "--sentences", "--shards", 2)
    main(arguments)
    said = capsys.readouterr().out
    assert f"left out: {corpus / 'a.txt'} line 6: invalid UTF-8" in said
    assert f"left out: {corpus / 'b.jsonl'} line 2: empty text" in said
    assert "left out 2 of 8" in said
    assert f"{target}: 6 documents, 30 tokens of split 'train' in 2 shards" in said
    info = json.loads((target / "info.json").read_text())
    assert (info["splits"]["train"]["count"], info["splits"]["train"]["corrupt"]) == (6, 2)
    tokenizer = Tokenizer.load(str(target))
    assert info["tokenizer"] == {
        "file": "tokenizer.json",
        "hash": Tokenizer.load("sample:peps").hash,
        "size": 6144,
    }
    store = TokenStore(str(target), "train")
    read = [store.read(i, 0, int(n)) for i, n in enumerate(store.lengths)]
    assert [ids.dtype for ids in read] == [np.int32] * 6
    assert tokenizer.inner.decode(read[0].tolist()) == "one two three. four."
    assert [len(store.sentences(i)) for i in range(6)] == [2, 1, 1, 2, 1, 1]
    main(arguments)
    assert "already has split 'train'" in capsys.readouterr().out
    main([*arguments, "--split", "test"])
    assert len(TokenStore(str(target), "test")) == 6


def test_interrupted_and_run_again(corpus, tmp_path, capsys):
    arguments = ["--tokenizer", "sample:peps", "--shards", 3]
    main(command(corpus, tmp_path / "whole", *arguments))
    main(command(corpus, tmp_path / "out", *arguments))
    # As an interruption before the last shard leaves it.
    info = json.loads((tmp_path / "out" / "info.json").read_text())
    split = info["splits"].pop("train")
    kept = {shard.pop("file"): {**shard, "corrupt": []} for shard in split["shards"][:2]}
    (tmp_path / "out" / "info.json").unlink()
    progress = {"job": split["job"], "finished": kept}
    (tmp_path / "out" / ".train.progress.json").write_text(json.dumps(progress))
    for file in (tmp_path / "out").glob("train-00002*"):
        file.unlink()
    main(command(corpus, tmp_path / "out", *arguments))
    assert "going on: 2 of 3 shards" in capsys.readouterr().out
    whole, again = (TokenStore(str(tmp_path / name), "train") for name in ("whole", "out"))
    assert again.lengths.tolist() == whole.lengths.tolist()
    assert again.frequencies.tolist() == whole.frequencies.tolist()
    with pytest.raises(DataError, match="other settings"):
        main(command(corpus, tmp_path / "out", *arguments, "--sentences"))


def test_a_tokenizer_is_trained_once(corpus, tmp_path, capsys):
    target = tmp_path / "out"
    train = ("--train-tokenizer", "bpe", "--vocab-size", 300)
    main(command(corpus, target, *train))
    assert "trained" in capsys.readouterr().out
    first = (target / "tokenizer.json").read_text()
    main(command(corpus, target, *train, "--split", "test"))
    assert f"using {target / 'tokenizer.json'}" in capsys.readouterr().out
    assert (target / "tokenizer.json").read_text() == first
    with pytest.raises(DataError, match="tokens of another tokenizer"):
        main(command(corpus, target, "--tokenizer", "sample:peps", "--split", "more"))
    # What a text spells out is text: </s> would end it.
    store = TokenStore(str(target), "train")
    special = Tokenizer.load(str(target)).vocabulary.special_ids
    assert store.frequencies[list(special)].sum() == 0
    preprocessing = TextPreprocessing(tokenizer=str(target), max_length=16)
    assert Tokens(path=str(target), preprocessing=preprocessing)[0]["segments"].max() >= 1


def test_documents_without_a_token(tmp_path, capsys):
    rows = [{"text": "\u200b\u200b"}, {"text": "One two."}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main(command(tmp_path / "rows.jsonl", tmp_path / "out", "--tokenizer", "sample:peps"))
    assert f"left out: {tmp_path / 'rows.jsonl'} line 1: no tokens" in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(DataError, match=r"none of the 1 .*, such as .* line 1: no tokens\.$"):
        main(command(tmp_path / "rows.jsonl", tmp_path / "none", "--tokenizer", "sample:peps"))


def test_impossible_flags(corpus, tmp_path):
    with pytest.raises(ConfigError, match="either it or --train-tokenizer"):
        main(command(corpus, tmp_path / "out"))
    with pytest.raises(ConfigError, match="--quality: means nothing to --from text"):
        main(command(corpus, tmp_path / "out", "--quality", 3))
    with pytest.raises(ConfigError, match="--unit: means nothing to --from idx"):
        main(["--from", "idx", "--input", "x", "--to", "y", "--unit", "line"])
    with pytest.raises(DataError, match="no column 'body'"):
        main(
            command(
                corpus / "b.jsonl", tmp_path / "x", "--tokenizer", "sample:peps",
                "--text-field", "body",
            )
        )  # fmt: skip


def test_the_sample_is_every_fifth_document(tmp_path):
    folder = tmp_path / "peps"
    folder.mkdir()
    for number in range(100):
        text = f"PEP: {number}\n=====\n\nThe proposal {number}. It is new.\n"
        (folder / f"pep-{number:04d}.rst").write_text(text)
    make_peps(folder, tmp_path / "out")
    train, test = (TokenStore(str(tmp_path / "out"), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (18, 2)
    tokenizer = Tokenizer.load(str(tmp_path / "out"))
    found = tokenizer.inner.decode(test.read(1, 0, int(test.lengths[1])).tolist())
    assert found == "pep : 50 the proposal 50. it is new."
    assert len(TokenStore("sample:peps", "train")) == 126
