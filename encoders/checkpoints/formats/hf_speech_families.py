"""What each family of transformers' encoders of raw speech says in its config.json.

- wav2vec 2.0 (arXiv 2006.11477): the features always have a norm, and the quantizer of the
  pre-training has fields of its own.
- HuBERT (arXiv 2106.07447): the features have a norm or not.
- data2vec (arXiv 2202.03555): all convolutions have layer norms, norms come behind the branches,
  and several convolutions of positions, with smaller kernels, stand for one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from encoders.checkpoints.formats.hf_rules import SIZES

# Our field -> theirs.
_FIELDS = {
    **SIZES,
    "mlp": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "mlp_dropout": "activation_dropout",
    "input_dropout": "feat_proj_dropout",
    "layer_drop": "layerdrop",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "position_groups": "num_conv_pos_embedding_groups",
}
_WAV2VEC2 = {
    **_FIELDS,
    "conv_norm": "feat_extract_norm",
    "pre_norm": "do_stable_layer_norm",
    "position_kernel": "num_conv_pos_embeddings",
}
_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.1,
    "layerdrop": 0.1,
    "feat_extract_activation": "gelu",
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
_WAV2VEC2_DEFAULTS = {
    **_DEFAULTS,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "add_adapter": False,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type.

    Attributes:
      name: of our model.
      trunk: class of the encoder alone.
      prefix: what its tensors are under in models with heads.
      defaults: values of config fields that a file may leave out: those of the config's class.
      fields: our field -> config field.
      only: config field -> the one value that is supported.
      fixed: our field -> the one value that the family has.
    """

    name: str
    trunk: str
    prefix: str
    defaults: Mapping[str, Any]
    fields: Mapping[str, str]
    only: Mapping[str, Any]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_ONLY = {"feat_extract_activation": "gelu"}

FAMILIES = {
    "wav2vec2": Family(
        "wav2vec2",
        "Wav2Vec2Model",
        "wav2vec2",
        {
            **_WAV2VEC2_DEFAULTS,
            "num_codevectors_per_group": 320,
            "num_codevector_groups": 2,
            "contrastive_logits_temperature": 0.1,
            "num_negatives": 100,
            "codevector_dim": 256,
            "proj_codevector_dim": 256,
            "diversity_loss_weight": 0.1,
            "feat_quantizer_dropout": 0.0,
        },
        _WAV2VEC2,
        {**_ONLY, "add_adapter": False, "adapter_attn_dim": None},
        {"feature_norm": True},
    ),
    "hubert": Family(
        "hubert",
        "HubertModel",
        "hubert",
        {**_WAV2VEC2_DEFAULTS, "feat_proj_layer_norm": True},
        {**_WAV2VEC2, "feature_norm": "feat_proj_layer_norm"},
        {**_ONLY, "conv_pos_batch_norm": False},
    ),
    "data2vec-audio": Family(
        "data2vec_audio",
        "Data2VecAudioModel",
        "data2vec_audio",
        {
            **_DEFAULTS,
            "conv_pos_kernel_size": 19,
            "num_conv_pos_embeddings": 5,
            "add_adapter": False,
        },
        {
            **_FIELDS,
            "position_kernel": "conv_pos_kernel_size",
            "position_depth": "num_conv_pos_embeddings",
        },
        {**_ONLY, "add_adapter": False},
        {"feature_norm": True, "conv_norm": "layer", "pre_norm": False},
    ),
}
MODELS = {family.name: model_type for model_type, family in FAMILIES.items()}
