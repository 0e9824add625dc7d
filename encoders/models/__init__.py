"""Networks, one file per family; a config picks one by `model.name`."""

from encoders.models.albert import ALBERT
from encoders.models.bert import BERT
from encoders.models.distilbert import DistilBERT
from encoders.models.electra import ELECTRA
from encoders.models.graphcodebert import GraphCodeBERT
from encoders.models.roberta import RoBERTa
from encoders.models.unixcoder import UniXcoder
from encoders.models.vit import ViT

MODELS = {
    "albert": ALBERT,
    "bert": BERT,
    "distilbert": DistilBERT,
    "electra": ELECTRA,
    "graphcodebert": GraphCodeBERT,
    "roberta": RoBERTa,
    "unixcoder": UniXcoder,
    "vit": ViT,
}
