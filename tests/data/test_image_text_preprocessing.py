"""What a pair of encoders expects of images and texts: preparation, and how it travels."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from encoders.config import build
from encoders.data import PREPROCESSING, CorruptExample, TextPreprocessing, build_transforms
from encoders.data.batcher import make_example
from encoders.data.tokenizer import Tokenizer
from encoders.errors import ConfigError

TOKENIZER = pathlib.Path(__file__).parents[1] / "golden" / "sentence" / "bert_mean"
TEXT = dict(tokenizer=str(TOKENIZER / "tokenizer.json"), max_length=9, token_types=False)
IMAGE = dict(image_size=(8, 8), channels=3, crop_fraction=1.0)
EXAMPLE = {"image": np.full((10, 12, 3), 7, np.uint8), "text": ["a man", "a guitar"]}


def prepare(**fields):
    section = {"name": "image_text", "image": IMAGE, "text": {**TEXT, **fields}}
    return build(PREPROCESSING, section, "preprocessing")


@pytest.fixture(scope="module")
def preprocessing():
    return prepare()


def run(preprocessing, example, seed=0):
    class Source(list):
        draw = None

    source, rng = Source([example]), np.random.default_rng(seed)
    return make_example(source, 0, preprocessing.eval_transforms(), rng)


def test_both_are_prepared(preprocessing):
    found = run(preprocessing, {**EXAMPLE, "texts": ["left", "out"]})
    assert sorted(found) == ["ids", "image", "segments", "word_start"]
    assert found["image"].shape == (8, 8, 3)
    example = preprocessing.example_batch(2)
    assert example["image"].shape == (2, 8, 8, 3)
    assert example["ids"].shape == (2, 9)
    (images, ids), named = preprocessing.encoder_inputs(example)
    assert images is example["image"]
    assert ids is example["ids"]
    assert set(named) == {"segments"}
    assert preprocessing.input_size == ((8, 8), 9)
    normal = preprocessing.normalize(example["image"])
    np.testing.assert_allclose(preprocessing.denormalize(normal), 0, atol=1e-6)


def test_transforms_of_images_and_texts_work_together(preprocessing):
    sections = [{"name": "random_resized_crop"}, {"name": "random_flip"}, {"name": "tokenize"}]
    example = EXAMPLE
    for transform in build_transforms(sections, preprocessing):
        example = transform(example, np.random.default_rng(0))
    assert example["image"].shape == (8, 8, 3)
    assert example["ids"].shape == (9,)
    assert example["text"] in EXAMPLE["text"]


def test_one_of_several_captions_is_drawn(preprocessing):
    drawn = {run(preprocessing, EXAMPLE, seed)["ids"].tobytes() for seed in range(20)}
    alone = [run(preprocessing, {**EXAMPLE, "text": text})["ids"] for text in EXAMPLE["text"]]
    assert drawn == {ids.tobytes() for ids in alone}
    with pytest.raises(CorruptExample, match="the list of texts is empty"):
        run(preprocessing, {**EXAMPLE, "text": []})
    with pytest.raises(CorruptExample, match="no field 'text'"):
        run(preprocessing, {"image": EXAMPLE["image"]})


def test_it_travels(preprocessing):
    section = json.loads(json.dumps(prepare(lowercase=True, template="see {}").to_json()))
    again = build(PREPROCESSING, section, "preprocessing")
    assert again.text.opened.hash == preprocessing.text.opened.hash
    assert again.image == preprocessing.image
    assert again.text.lowercase
    assert again.text.template == "see {}"


def test_forms_of_texts():
    canonical = TextPreprocessing("x", lowercase=True, strip_punctuation=True, template="A {}!")
    assert canonical.prepare("Cat's  eye,\n shut") == "a cats eye shut"
    assert TextPreprocessing("x").prepare(" A  {}! ") == " A  {}! "
    with pytest.raises(ConfigError, match=r"template: expected '\{\}' where the text goes"):
        TextPreprocessing("x", template="a photo")


def test_padding_that_is_attended():
    plain, attended = (run(prepare(attend_padding=a), EXAMPLE) for a in (False, True))
    np.testing.assert_array_equal(plain["ids"], attended["ids"])
    assert plain["segments"].sum() < 9
    assert attended["segments"].all()


def clip_tokenizer():
    """A tokenizer with CLIP's special tokens, which marks ends of words."""
    ids = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "c": 3, "at</w>": 4, "a": 5}
    ids |= {"t</w>": 6}
    merges = [("a", "t</w>")]
    inner = tokenizers.Tokenizer(models.BPE(ids, merges, end_of_word_suffix="</w>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    inner.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", 1), ("<|startoftext|>", 0)
    )
    return inner.to_str()


def test_a_tokenizer_like_clip_s():
    preprocessing = TextPreprocessing(clip_tokenizer(), 8, token_types=False)
    [tokenize] = preprocessing.eval_transforms()
    found = tokenize({"text": "a cat"}, np.random.default_rng(0))
    assert found["ids"].tolist() == [0, 2, 3, 4, 1, 1, 1, 1]
    assert found["segments"].sum() == 5
    assert found["word_start"].tolist() == [True, True, True, False, True] + [False] * 3
    cut = TextPreprocessing(clip_tokenizer(), 4, token_types=False).eval_transforms()[0]
    assert cut({"text": "a cat"}, np.random.default_rng(0))["ids"].tolist() == [0, 2, 3, 1]


def test_padding_with_another_special_token():
    """SigLIP has a <pad>, and pads with </s>."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "cat": 3}
    inner = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<pad>", "</s>", "<unk>"])
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    found = Tokenizer.load(inner.to_str()).vocabulary
    assert (found.pad_id, found.sep_id, found.unk_id) == (0, 1, 2)
    fields = {**found.__dict__, "pad_id": 1}
    section = {"name": "text", "tokenizer": inner.to_str(), "max_length": 4, "vocabulary": fields}
    [tokenize] = build(PREPROCESSING, section, "preprocessing").eval_transforms()
    assert tokenize({"text": "cat"}, np.random.default_rng(0))["ids"].tolist() == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        (["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>", "<mask>"], ["<s>", "</s>"]),  # RoBERTa
        (
            ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<s>", "</s>"],
            ["<bos>", "<eos>"],
        ),  # Gemma
    ],
)
def test_special_tokens_that_could_be_mistaken(tokens, ends):
    words = {token: number for number, token in enumerate(tokens)}
    inner = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    found = Tokenizer.load(inner.to_str()).vocabulary
    assert [found.cls_id, found.sep_id] == [words[end] for end in ends]
    assert found.pad_id == words["<pad>"]
    assert found.mask_id == words["<mask>"]
