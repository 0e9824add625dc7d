"""Measures networks: the same evaluators during training, in `tools.evaluate` and in notebooks."""

from encoders.evaluation.base import Evaluator
from encoders.evaluation.classification import Classification
from encoders.evaluation.features import FeatureExtractor
from encoders.evaluation.few_shot import FewShot
from encoders.evaluation.fine_tuning import FineTuning
from encoders.evaluation.frame_probe import FrameProbe
from encoders.evaluation.image_text_retrieval import ImageTextRetrieval
from encoders.evaluation.knn import KNN
from encoders.evaluation.linear_probe import LinearProbe
from encoders.evaluation.masked_accuracy import MaskedAccuracy
from encoders.evaluation.reconstruction import Reconstruction
from encoders.evaluation.retrieval import Retrieval
from encoders.evaluation.similarity import Similarity
from encoders.evaluation.transcription import Transcription
from encoders.evaluation.zero_shot import ZeroShot

EVALUATORS = {
    "classification": Classification,
    "ctc": Transcription,
    "few_shot": FewShot,
    "fine_tuning": FineTuning,
    "frame_probe": FrameProbe,
    "image_text_retrieval": ImageTextRetrieval,
    "knn": KNN,
    "linear_probe": LinearProbe,
    "masked_accuracy": MaskedAccuracy,
    "reconstruction": Reconstruction,
    "retrieval": Retrieval,
    "sts": Similarity,
    "zero_shot": ZeroShot,
}

__all__ = ["EVALUATORS", "Evaluator", "FeatureExtractor"]
