"""Writes tests/golden/sentence.npz: poolings and losses of sentence-transformers on random numbers.

    python -m tools.golden.write_sentence        # needs the extra 'parity'

Every loss has its inputs, its value and the gradient of that, from PyTorch in float32. Directories
that sentence-transformers saved, with the vectors it encodes texts to, go to tests/golden/sentence.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import losses as cross_losses
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from tools.golden.write_text import randomize

GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden"
POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
}


class _Model(torch.nn.Module):
    """Stands in for a network whose vectors or logits are already there."""

    device = torch.device("cpu")
    num_labels = 1


def poolings() -> dict[str, torch.Tensor]:
    """Four texts of 5, 3, 4 and 1 real tokens, padded behind and before."""
    tokens = torch.randn(4, 5, 7)
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [0] + [1] * 4, [0, 0, 1, 0, 0]])
    found = {"tokens": tokens, "mask": mask.bool()}
    for ours, theirs in POOLINGS.items():
        given = {"token_embeddings": tokens, "attention_mask": mask}
        found[ours] = Pooling(7, pooling_mode=theirs)(given)["sentence_embedding"]
    return found


def sentence_losses() -> dict[str, dict[str, torch.Tensor]]:
    """Loss -> inputs and the value, for vectors [B, K, D]."""
    model = _Model()
    classes, scores = torch.tensor([0, 2, 1, 2, 0, 1]), torch.tensor([0.2, 5, 3.4, 3.4, 0, 1])
    softmax = losses.SoftmaxLoss(model, embedding_dimension=8, num_labels=3)
    found = {
        "contrast": (2, losses.MultipleNegativesRankingLoss(model), None),
        "contrast_hard": (4, losses.MultipleNegativesRankingLoss(model), None),
        "contrast_cold": (2, losses.MultipleNegativesRankingLoss(model, scale=50.0), None),
        "triplet": (3, losses.TripletLoss(model), None),
        "cosent": (2, losses.CoSENTLoss(model), scores),
        "pair": (2, softmax, classes),
    }
    cases = {}
    for name, (count, loss, label) in found.items():
        vectors = torch.randn(6, count, 8, requires_grad=True)
        texts = list(vectors.unbind(1))
        if name == "pair":  # has no way to be given vectors
            features = torch.cat([texts[0], texts[1], (texts[0] - texts[1]).abs()], 1)
            value = loss.loss_fct(loss.classifier(features), label)
        else:
            value = loss.compute_loss_from_embeddings(texts, label)
        value.backward()
        cases[name] = {"vectors": vectors, "value": value, "gradient": vectors.grad}
        if label is not None:
            cases[name]["label"] = label
    cases["pair"] |= {"kernel": softmax.classifier.weight.T, "bias": softmax.classifier.bias}
    return cases


def ranking_losses() -> dict[str, dict[str, torch.Tensor]]:
    """Loss -> logits, labels and the value, of the losses of cross-encoders."""
    logits = torch.randn(5)
    label = torch.tensor([0.0, 1.0, 0.3, 1.0, 0.0])
    cases = {
        name: {"logits": logits, "label": label, "value": _of_pairs(kind, logits, label)}
        for name, kind in (
            ("binary", cross_losses.BinaryCrossEntropyLoss),
            ("regression", cross_losses.MSELoss),
        )
    }
    pairs = torch.randn(5, 2)
    cases["pairwise"] = {"logits": pairs, "value": _of_order(pairs)}
    lists = torch.randn(5, 4)
    ranking = cross_losses.MultipleNegativesRankingLoss(
        _cross_encoder(lists), scale=1.0, activation_fn=torch.nn.Identity()
    )
    value = ranking.calculate_loss(list(lists.unbind(1)), 5)
    cases["listwise"] = {"logits": lists, "value": value}
    return cases


def _cross_encoder(logits: torch.Tensor) -> torch.nn.Module:
    class Model(CrossEncoder):
        """Its scores are given; the losses check the class."""

        num_labels = 1
        device = torch.device("cpu")

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def preprocess(self, pairs: object, **_: object) -> dict[str, torch.Tensor]:
            return {}

        def forward(self, features: object, **_: object) -> dict[str, torch.Tensor]:
            return {"scores": logits.reshape(-1, 1)}

    return Model()


def _of_pairs(kind: type, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    texts = ["x"] * len(logits)
    return kind(_cross_encoder(logits))([texts, texts], label)


def _of_order(logits: torch.Tensor) -> torch.Tensor:
    """RankNet's loss of logits [B, 2] whose first is the better one."""
    label = torch.tensor([1.0, 0.0])
    loss = cross_losses.RankNetLoss(
        _cross_encoder(logits), reduction_log="natural", mini_batch_size=logits.numel()
    )
    return loss([["x"] * len(logits), [["x", "x"]] * len(logits)], [label] * len(logits))


TEXTS = [
    "A man is playing a guitar.",
    "",
    "Someone plays an instrument, and sings; the others listen until the very end of the song.",
    "A dog!",
    "the naïve café in 東京 isn't open",
    "A man is playing a guitar",
    "  white   space\tis no text ",
]
_TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}


def _tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    """A small one, trained on TEXTS."""
    if kind == "bert":
        trained = tokenizers.BertWordPieceTokenizer()
        trained.train_from_iterator(TEXTS, vocab_size=90, show_progress=False)
        return transformers.BertTokenizerFast(tokenizer_object=trained._tokenizer)
    trained = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXTS, vocab_size=300, special_tokens=special, show_progress=False)
    vocabulary, merges = json.loads(trained.to_str())["model"]["vocab"], trained.to_str()
    merges = [tuple(pair) for pair in json.loads(merges)["model"]["merges"]]
    return transformers.RobertaTokenizerFast(vocab=vocabulary, merges=merges)


def write_directory(name: str, kind: str, length: int, poolings: list[str], **more: Any) -> None:
    """A tiny model as sentence-transformers saves it, and what it makes of TEXTS."""
    directory = GOLDEN / "sentence" / name
    shutil.rmtree(directory, ignore_errors=True)
    tokenizer = _tokenizer(kind)
    config = getattr(transformers, {"bert": "BertConfig", "roberta": "RobertaConfig"}[kind])(
        **_TINY,
        vocab_size=len(tokenizer),
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
    )
    network = transformers.AutoModel.from_config(config).eval()
    randomize(network, seed=len(name))
    with tempfile.TemporaryDirectory() as temporary:
        network.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        transformer = Transformer(temporary, max_seq_length=length)
        parts = [transformer, Pooling(12, pooling_mode=poolings)]
        parts += [Normalize()] if more.get("normalize") else []
        model = SentenceTransformer(modules=parts, device="cpu", **more.get("prompts", {}))
        model.save(str(directory), create_model_card=False)
    np.savez_compressed(directory / "expected.npz", vectors=model.encode(TEXTS))
    print(name, *sorted(str(p.relative_to(directory)) for p in directory.rglob("*")))


def write_cross_encoder(name: str, kind: str) -> None:
    """A tiny cross-encoder, and its logits for each of TEXTS with the one before."""
    directory = GOLDEN / "sentence" / name
    shutil.rmtree(directory, ignore_errors=True)
    tokenizer = _tokenizer(kind)
    config = getattr(transformers, {"bert": "BertConfig", "roberta": "RobertaConfig"}[kind])(
        **_TINY,
        vocab_size=len(tokenizer),
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    )
    network = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    randomize(network, seed=len(name))
    with tempfile.TemporaryDirectory() as temporary:
        network.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        model = CrossEncoder(temporary, max_length=30, device="cpu")
        model.save_pretrained(str(directory))
    pairs = list(zip(TEXTS, TEXTS[-1:] + TEXTS[:-1], strict=True))
    logits = model.predict(pairs, activation_fn=torch.nn.Identity())
    np.savez_compressed(directory / "expected.npz", logits=logits)
    (directory / "README.md").unlink(missing_ok=True)
    print(name, *sorted(str(p.relative_to(directory)) for p in directory.rglob("*")))


def main() -> None:
    """Writes every file anew."""
    torch.manual_seed(0)
    groups = {"pooling": poolings(), **sentence_losses(), **ranking_losses()}
    arrays = {
        f"{group}/{name}": value.detach().numpy()
        for group, values in groups.items()
        for name, value in values.items()
    }
    np.savez_compressed(GOLDEN / "sentence.npz", **arrays)
    print(*sorted(arrays), sep="\n")
    write_directory("bert_mean", "bert", 12, ["mean"], normalize=True)
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    write_directory("roberta_cls_max", "roberta", 30, ["cls", "max"], prompts=prompts)
    write_cross_encoder("cross_bert", "bert")
    write_cross_encoder("cross_roberta", "roberta")


if __name__ == "__main__":
    main()
