"""Answers and tags find the tokens of their words, whatever a tokenizer does with spaces."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from encoders.data import TextPreprocessing
from encoders.data.sources import CorruptExample
from encoders.data.transforms.tokenize_labels import TokenizeAnswer, TokenizeTags

TEXTS = ["the black cat runs over unbelievable hills, and sleeps", "a dog's unbelievable café"] * 20


def word_piece():
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=special)
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def byte_level():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 3), ("<s>", 2))
    return made


@pytest.fixture(params=[word_piece, byte_level])
def preprocessing(request):
    return TextPreprocessing(tokenizer=request.param().to_str(), max_length=40)


def tokens(preprocessing, ids):
    names = map(preprocessing.opened.inner.id_to_token, ids.tolist())
    return [name.removeprefix("Ġ").removeprefix("##") for name in names]


def test_a_tag_stands_at_the_first_token_of_its_word(preprocessing):
    tag = TokenizeTags(preprocessing=preprocessing, names=("O", "B"))
    found = tag({"text": "the  unbelievable café, sleeps", "tags": "O B B O"}, None)
    places = np.flatnonzero(found["tags"] >= 0)
    assert found["tags"][places].tolist() == [0, 1, 1, 0]
    begins = [token[:2] for token in tokens(preprocessing, found["ids"][places])]
    assert begins == ["th", "un", "ca", "sl"]
    # As the text would be tokenised without tags.
    ids = preprocessing.opened.ids("the unbelievable café, sleeps")
    np.testing.assert_array_equal(found["ids"][1 : 1 + len(ids)], ids)
    with pytest.raises(CorruptExample, match="2 words, but 1 tags"):
        tag({"text": "the cat", "tags": ["O"]}, None)
    with pytest.raises(CorruptExample, match="unknown tag 'X'"):
        tag({"text": "the cat", "tags": ["O", "X"]}, None)


def test_an_answer_is_found_in_its_text_unless_it_was_cut_off(preprocessing):
    context, answer = "a dog sleeps. the unbelievable café hills", "unbelievable café"
    example = {"text": "the dog?", "other": context, "answers": (answer,)}
    example["starts"] = (context.index(answer),)
    found = TokenizeAnswer(preprocessing=preprocessing)(example, None)
    first, last = found["answer"]
    offsets = preprocessing.opened.inner.encode(context, add_special_tokens=False).offsets
    begin, stop = (offsets[place - found["context"][0]] for place in (first, last))
    assert context[begin[0] : stop[1]].strip() == answer
    short = TextPreprocessing(tokenizer=preprocessing.tokenizer, max_length=13)
    cut = TokenizeAnswer(preprocessing=short)(example, None)
    np.testing.assert_array_equal(cut["answer"], [0, 0])
    assert cut["context"][1] == 13 - 1  # but for the last special token
    none = TokenizeAnswer(preprocessing=preprocessing)(
        {**example, "answers": (), "starts": ()}, None
    )
    np.testing.assert_array_equal(none["answer"], [0, 0])
