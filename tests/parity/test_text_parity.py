"""Text encoders out, against transformers itself (`make parity`; needs PyTorch)."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

import encoders
from encoders.config import build
from encoders.encoder import TextEncoder
from encoders.models import MODELS

pytestmark = pytest.mark.parity
IDS = np.random.default_rng(0).integers(5, 40, (3, 9))
MASK = np.arange(9) < np.array([9, 6, 1])[:, None]
TYPES = np.arange(9)[None].repeat(3, 0) // 5
# What there has another name; encoders of code are no more than RoBERTas.
MODEL_TYPES = {"deberta": "deberta-v2", "graphcodebert": "roberta", "unixcoder": "roberta"}


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"vit"}))
def test_exported_encoders_load_in_transformers(name, tmp_path):
    sizes = {"width": 24, "depth": 2, "mlp_dim": 40, "num_heads": 3, "vocab_size": 40}
    if name in ("albert", "electra"):
        sizes["embedding_dim"] = 10
    if name != "xlnet":  # the one without a table of positions
        sizes["max_length"] = 12
    module = build(MODELS, {"name": name, **sizes}, "model")
    params = module.init(jax.random.key(0), IDS)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), params)
    encoder = TextEncoder(module, {"params": params})
    types = {"token_types": TYPES} if module.num_token_types > 1 else {}
    ids = np.where(MASK, IDS, module.pad_id or 0)
    out = encoder(ids, mask=MASK, **types, layers="all")

    encoders.save(encoder, tmp_path / "out", format="hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == MODEL_TYPES.get(name, name)
    model, info = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    left = {key: [n for n in names if "pooler" not in n] for key, names in info.items()}
    assert not any(left.values()), left
    arguments = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(MASK.astype(int))}
    if types:
        arguments["token_type_ids"] = torch.tensor(TYPES)
    with torch.no_grad():
        theirs = model.eval()(**arguments, output_hidden_states=True)
    pre_norm = getattr(module, "pre_norm", False)
    for layer, hidden in enumerate(theirs.hidden_states[1:]):
        # After the final norm, where there is one.
        ours = out.tokens if pre_norm and layer == module.depth - 1 else out.hidden[layer]
        np.testing.assert_allclose(ours, hidden, rtol=0, atol=1e-5)
    if module.pool == "pooler":
        np.testing.assert_allclose(out.pooled, theirs.pooler_output, rtol=0, atol=1e-5)
