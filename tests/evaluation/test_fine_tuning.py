"""Fine-tuning learns what can be learned, says so where nothing was, and seeds do not meet."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_toys import PREPROCESSING, WORDS, Words, init, make, write

from encoders.data.sources.squad import Squad
from encoders.data.transforms.tokenize_labels import (
    TokenizeAnswer,
    TokenizeTags,
    first_tokens,
    token_span,
)
from encoders.errors import ConfigError, DataError
from encoders.evaluation.tasks import Answer
from encoders.evaluation.windows import Windows
from encoders.models.bert import BERT
from encoders.parallel.mesh import make_mesh

FAST = dict(lr=0.05, epochs=6, train_batch_size=16, batch_size=64, seeds=3, warmup=0.2)
FAST["head_dropout"] = 0.0  # random numbers are most of what is compiled here


def sentence(rng, words=5):
    return " ".join(rng.choice(WORDS, rng.integers(2, words + 1)))


def splits(tmp_path, rows, test=60, **section):
    return {
        "train": {**write(tmp_path / "train.jsonl", rows[test:]), **section},
        "test": {**write(tmp_path / "test.jsonl", rows[:test]), **section},
    }


def labelled(rng, count):
    texts = [sentence(rng) for _ in range(count)]
    return [{"text": text, "label": int("cat" in text or "dog" in text)} for text in texts]


@pytest.fixture(scope="module")
def encoder():
    module = Words()
    return module, init(module)


def test_a_rule_is_learned_and_the_spread_is_told(tmp_path, encoder):
    data = splits(tmp_path, labelled(np.random.default_rng(0), 360))
    found = make("fine_tuning", **data, **FAST).run(*encoder)
    for metric in ("accuracy", "f1", "mcc"):
        spread = [found[f"{metric}_{name}"] for name in ("min", "max", "std")]
        assert spread[0] <= found[metric] <= spread[1]
        assert spread[2] >= 0
    assert found["accuracy"] > 0.95
    assert found["degenerate"] == 0.0
    assert 0.5 <= found["chance"] < 0.8
    mesh = make_mesh(data=1, fsdp=2, tensor=1, devices=jax.devices()[:2])
    again = make("fine_tuning", mesh, **data, **FAST).run(*encoder)
    assert again["accuracy_min"] > 0.95


def test_seeds_are_as_if_each_were_alone(tmp_path, encoder):
    data = splits(tmp_path, labelled(np.random.default_rng(1), 120))
    outputs = []
    for parallel in (3, 2):
        fields = {**FAST, "epochs": 1, "head_dropout": 0.2}
        evaluator = make("fine_tuning", **data, **fields, parallel=parallel)
        evaluator._data = evaluator._read()
        object.__setattr__(evaluator._data[0], "predict", lambda outputs, batch: outputs)
        chunks = ([0, 1, 2],) if parallel == 3 else ([0, 1], [2, 2])
        outputs += [evaluator._fine_tune(*encoder, np.array(seeds)) for seeds in chunks]
    together, first, last = outputs
    np.testing.assert_allclose(together[:2], first, atol=1e-4)
    np.testing.assert_allclose(together[[2, 2]], last, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 1e-2


def test_labels_without_a_rule_make_degenerate_runs(tmp_path, encoder):
    rng = np.random.default_rng(2)
    rows = [{**row, "label": int(rng.random() < 0.3)} for row in labelled(rng, 160)]
    found = make("fine_tuning", **splits(tmp_path, rows), **{**FAST, "epochs": 2}).run(*encoder)
    assert found["degenerate"] == 3.0
    assert found["accuracy_min"] < 0.8


def test_regression_of_pairs_is_a_correlation(tmp_path, encoder):
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(300):
        pair = {"text": sentence(rng, 3), "other": sentence(rng, 3)}
        cats = sum(text.split().count("cat") for text in pair.values())
        rows.append({**pair, "score": 3.0 + 2.0 * cats - pair["text"].split().count("not")})
    found = make("fine_tuning", task="regression", **splits(tmp_path, rows), **FAST).run(*encoder)
    assert found["pearson_min"] > 0.9
    assert found["spearman"] > 0.7
    assert found["degenerate"] == found["chance"] == 0.0


def test_tags_of_words_are_scored_by_spans(tmp_path, encoder):
    rng = np.random.default_rng(4)
    rows = []
    for _ in range(160):
        words = sentence(rng).split()
        tags = ["B-x" if word in ("cat", "dog") else "O" for word in words]
        rows.append({"text": " ".join(words), "tags": tags})
    data = splits(tmp_path, rows, fields=("tags",))
    found = make("fine_tuning", task="tags", **data, **FAST).run(*encoder)
    assert found["f1"] == pytest.approx(1.0)
    assert found["accuracy"] == pytest.approx(1.0)
    assert found["chance"] > 0.5
    assert found["degenerate"] == 0.0


def squad(path, rng, count):
    questions = []
    for number in range(count):
        context = ["very", *rng.choice(["red", "here", "eats"], 3)]
        answers = []
        if number % 5:
            place = int(rng.integers(1, 4))
            context[place] = "cat"
            start = len(" ".join([*context[:place], ""]))
            answers = [{"text": "cat", "answer_start": start}] * 2
        asked = {"question": "dog", "id": str(number), "answers": answers}
        questions.append({"context": " ".join(context), "qas": [asked]})
    path.write_text(json.dumps({"data": [{"paragraphs": questions}]}))
    return dict(name="squad", path=str(path))


def test_answers_in_the_format_of_squad(tmp_path, encoder):
    rng = np.random.default_rng(5)
    train, test = squad(tmp_path / "a.json", rng, 160), squad(tmp_path / "b.json", rng, 40)
    found = make("fine_tuning", task="span", train=train, test=test, **FAST).run(*encoder)
    # A vector per word cannot tell whether there is an answer, but finds the one there is.
    assert found["exact"] >= 0.8
    assert found["f1"] >= found["exact"]
    assert found["chance"] == pytest.approx(0.8)  # always 'cat'

    source = Squad(path=test["path"])
    place = TokenizeAnswer(preprocessing=PREPROCESSING)
    example = place(source[1], None)
    first, last = example["answer"]
    assert first == last
    assert PREPROCESSING.opened.inner.id_to_token(int(example["ids"][first])) == "cat"
    np.testing.assert_array_equal(example["context"], [3, 7])  # [CLS] dog [SEP] very ...
    np.testing.assert_array_equal(place(source[0], None)["answer"], [0, 0])
    # [CLS] dog [SEP] and a last [SEP] leave room for four of eleven words: windows are two apart.
    short = dataclasses.replace(PREPROCESSING, max_length=8)
    words = "very red here eats red here cat eats red here red"
    asked = {"text": "dog", "other": words, "answers": ("cat",), "starts": (words.index("cat"),)}
    windows = Windows([asked], short)
    assert [windows[n]["first"] for n in range(len(windows))] == [0, 2, 4, 6, 8]
    rows = [TokenizeAnswer(preprocessing=short)(windows[n], None) for n in range(len(windows))]
    assert [row["answer"][0] for row in rows] == [0, 0, 5, 3, 0]
    task = Answer(2, [asked], short, none=True)
    arrays = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    predicted = np.array([[3, 3, -2.0], [3, 5, -1], [4, 6, 3], [3, 3, 4], [3, 3, -5]], np.float32)
    assert task.score(predicted, arrays) == {"f1": 1.0, "exact": 1.0}
    assert task.score(predicted[:3], {k: v[:3] for k, v in arrays.items()})["f1"] == 0.5
    assert task.score(predicted[:2], {k: v[:2] for k, v in arrays.items()})["f1"] == 0.0
    (tmp_path / "c.json").write_text('{"version": 1}')
    with pytest.raises(DataError, match="not in the format of SQuAD"):
        Squad(path=str(tmp_path / "c.json"))


def test_labels_within_texts_find_their_tokens():
    offsets = [(0, 3), (3, 6), (7, 9)]
    assert token_span(offsets, 3, 6) == (1, 1)
    assert token_span(offsets, 4, 8) == (1, 2)
    assert token_span(offsets, 7, 12) is None  # cut off
    # 'Uni', 'code', ' is' (with its space), a word that was cut away, and 'cut' but for its end.
    words = ["Unicode", "is", "not", "cut"]
    offsets = [(0, 3), (3, 7), (7, 10), (15, 16)]
    assert first_tokens(offsets, words) == [(0, 0), (2, 1), (3, 3)]
    tag = TokenizeTags(preprocessing=PREPROCESSING, names=("B", "O"))
    found = tag({"text": "red cat", "tags": "O B"}, None)
    np.testing.assert_array_equal(found["tags"][:5], [-1, 1, 0, -1, -1])


def test_layers_near_the_input_learn_slower_scanned_or_not():
    from encoders.evaluation.fine_tuning import FineTuning, _Program

    settings = FineTuning.__new__(FineTuning)
    settings.layer_decay, settings.weight_decay = 0.5, 0.1
    program = _Program.__new__(_Program)
    program.settings = settings
    layer = {"mlp": {"kernel": np.zeros((3, 3))}}
    rest = {"embeddings": {"words": np.zeros((5, 3))}, "pooler": {"kernel": np.zeros((3, 3))}}
    head = {"scores": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}
    plain = {"encoder": {"blocks_0": layer, "blocks_1": layer, **rest}, "head": head}
    rates, decays = program._multipliers(plain)
    assert rates["encoder"]["embeddings"]["words"] == 0.125
    assert rates["encoder"]["blocks_0"]["mlp"]["kernel"] == 0.25
    assert rates["encoder"]["blocks_1"]["mlp"]["kernel"] == 0.5
    assert rates["encoder"]["pooler"]["kernel"] == rates["head"]["scores"]["bias"] == 1.0
    assert decays["head"]["scores"] == {"kernel": 0.1, "bias": 0.0}
    assert decays["encoder"]["embeddings"]["words"] == 0.0
    stacked = {"blocks": {"mlp": {"kernel": np.zeros((2, 3, 3))}}, **rest}
    rates, _ = program._multipliers({"encoder": stacked, "head": head})
    np.testing.assert_allclose(rates["encoder"]["blocks"]["mlp"]["kernel"].ravel(), [0.25, 0.5])


def test_a_bert_is_fine_tuned_and_left_as_it_was(tmp_path):
    small = dict(width=8, depth=1, num_heads=2, mlp_dim=8, vocab_size=19, max_length=12)
    module = BERT(**small, dropout=0.0, attention_dropout=0.0)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))
    before = jax.tree.map(np.array, variables)
    data = splits(tmp_path, labelled(np.random.default_rng(6), 360))
    fields = {**FAST, "lr": 1e-2, "seeds": 2, "layer_decay": 0.9}
    found = make("fine_tuning", **data, **fields).run(module, variables)
    assert found["accuracy_max"] > 0.95
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_what_cannot_be_fine_tuned_is_one_sentence(tmp_path):
    rows = [{"text": "red cat", "label": 1}] * 4
    data = splits(tmp_path, rows, test=2)
    with pytest.raises(DataError, match=r"evaluators\.x\.train: all 2 examples are of one class"):
        make("fine_tuning", **data).run(None, {})
    with pytest.raises(DataError, match="its examples have no 'score'"):
        make("fine_tuning", task="regression", **data).run(None, {})
    with pytest.raises(DataError, match="its examples have no 'tags'"):
        make("fine_tuning", task="tags", **data).run(None, {})
    with pytest.raises(ConfigError, match=r"unknown value 'classify'.*'classification'"):
        make("fine_tuning", task="classify", **data)
    with pytest.raises(ConfigError, match="expected seeds"):
        make("fine_tuning", seeds=0, **data)
