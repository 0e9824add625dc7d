"""What encoders are trained on, one file per idea; a config picks one by `objective.name`."""

from encoders.objectives.best_rq import BestRQ
from encoders.objectives.bind import BindContrast
from encoders.objectives.captioning import ContrastCaption
from encoders.objectives.classification import Classification
from encoders.objectives.cluster_prediction import ClusterPrediction
from encoders.objectives.ctc import CTC
from encoders.objectives.data2vec import Data2Vec
from encoders.objectives.data_flow import DataFlowLanguage
from encoders.objectives.distillation import DistilledLanguage
from encoders.objectives.image_text import SigmoidContrast, SoftmaxContrast
from encoders.objectives.masked_image import MaskedImage
from encoders.objectives.masked_language import MaskedLanguage
from encoders.objectives.permutation import PermutationLanguage
from encoders.objectives.ranking import Ranking
from encoders.objectives.replaced_token import ReplacedToken
from encoders.objectives.sentence import (
    SentenceContrast,
    SentencePair,
    SentenceScore,
    SentenceTriplet,
)
from encoders.objectives.siglip2 import SigLip2
from encoders.objectives.speech_contrast import SpeechContrast

OBJECTIVES = {
    "best_rq": BestRQ,
    "bind": BindContrast,
    "classification": Classification,
    "cluster_prediction": ClusterPrediction,
    "contrast_caption": ContrastCaption,
    "ctc": CTC,
    "data2vec": Data2Vec,
    "data_flow": DataFlowLanguage,
    "distilled_language": DistilledLanguage,
    "masked_image": MaskedImage,
    "masked_language": MaskedLanguage,
    "permutation": PermutationLanguage,
    "ranking": Ranking,
    "replaced_token": ReplacedToken,
    "sentence_contrast": SentenceContrast,
    "sentence_pair": SentencePair,
    "sentence_score": SentenceScore,
    "sentence_triplet": SentenceTriplet,
    "siglip2": SigLip2,
    "sigmoid_contrast": SigmoidContrast,
    "softmax_contrast": SoftmaxContrast,
    "speech_contrast": SpeechContrast,
}
