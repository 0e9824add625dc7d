"""Networks, one file per family; a config picks one by `model.name`."""

from encoders.models.albert import ALBERT
from encoders.models.bert import BERT
from encoders.models.clip_resnet import CLIPResNet
from encoders.models.clip_text import CLIPText
from encoders.models.conformer import Conformer
from encoders.models.data2vec_audio import Data2VecAudio
from encoders.models.deberta import DeBERTa
from encoders.models.distilbert import DistilBERT
from encoders.models.efficientnet import EfficientNet
from encoders.models.electra import ELECTRA
from encoders.models.graphcodebert import GraphCodeBERT
from encoders.models.hubert import HuBERT
from encoders.models.imagebind import ImageBind
from encoders.models.modernbert import ModernBERT
from encoders.models.precomputed import Precomputed
from encoders.models.resnet import ResNet
from encoders.models.roberta import RoBERTa
from encoders.models.spectrogram_vit import SpectrogramViT
from encoders.models.towers import Towers
from encoders.models.unixcoder import UniXcoder
from encoders.models.vit import ViT
from encoders.models.wav2vec2 import Wav2Vec2
from encoders.models.whisper import Whisper
from encoders.models.xlnet import XLNet

MODELS = {
    "albert": ALBERT,
    "bert": BERT,
    "clip_resnet": CLIPResNet,
    "clip_text": CLIPText,
    "conformer": Conformer,
    "data2vec_audio": Data2VecAudio,
    "deberta": DeBERTa,
    "distilbert": DistilBERT,
    "efficientnet": EfficientNet,
    "electra": ELECTRA,
    "graphcodebert": GraphCodeBERT,
    "hubert": HuBERT,
    "imagebind": ImageBind,
    "modernbert": ModernBERT,
    "precomputed": Precomputed,
    "resnet": ResNet,
    "roberta": RoBERTa,
    "spectrogram_vit": SpectrogramViT,
    "towers": Towers,
    "unixcoder": UniXcoder,
    "vit": ViT,
    "wav2vec2": Wav2Vec2,
    "whisper": Whisper,
    "xlnet": XLNet,
}
