"""Linear probe: logistic regression on frozen features, penalty chosen on held-out training data.

Differs from the SGD probes of papers (LARS with batch norm in MAE, many learning rates in DINO): no
augmentation, one feature vector per image, and a convex problem solved to its end, as in CLIP
(arXiv 2103.00020, appendix A.3). Nothing depends on luck, and the test set is looked at once.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Literal

import numpy as np

from encoders.errors import ConfigError
from encoders.evaluation.features import Feature, Labelled
from encoders.evaluation.logistic import LogisticRegression, Solution
from encoders.evaluation.probe import Probe, held_out, standardize

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class LinearProbe(Probe):
    """Multinomial logistic regression on standardised features.

    Each column is standardised by itself, but for a bag of words, all columns alike: rare words
    would count for too much.

    The penalties are tried from the strongest down, each from the solution before it, on training
    data without the held-out part; the sweep ends early when two in a row brought no better
    held-out accuracy. The best one is fitted again to all of train, and tested once.

    With feature='weighted_sum' it is SUPERB's probe of whole clips (arXiv 2105.01051, section 3.2):
    features are a sum of all blocks' outputs, averaged over tokens, with weights that are learnt
    with the regression and are a softmax. (There the first block's input counts as a layer, too.)

    Metrics: 'accuracy', 'cross_entropy' (nats), 'train_accuracy', 'holdout_accuracy' of the chosen
    penalty, and 'l2', that penalty; of a weighted sum 'layer{n}_weight' for every layer as well.

    Attributes:
      feature: as of any probe, or 'weighted_sum'.
      l2: penalties: l2 / 2 |W|^2 against the mean cross-entropy.
      holdout: part of every class of train that the penalty is chosen on.
      max_iterations: of L-BFGS, per penalty.
      tolerance: on the scaled gradient; see `logistic`.
    """

    feature: Feature | Literal["weighted_sum"] = "pooled"
    l2: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
    holdout: float = 0.1
    max_iterations: int = 200
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l2 or min(self.l2) <= 0:
            raise ConfigError(
                f"evaluators.{self.label}.l2: expected penalties above 0, got {self.l2}."
            )

    def score(self, train: Labelled, test: Labelled, num_classes: int) -> dict[str, float]:
        features, test_features = standardize(
            train.features, test.features, one_scale=train.one_scale
        )
        problem = LogisticRegression(
            features,
            train.labels,
            num_classes,
            mesh=self.mesh,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
        )
        held = self.held_out(train)
        l2, start, holdout_accuracy = self._choose(problem, features, train.labels, held)
        final = problem.fit(l2, start=start)
        logits = final.logits(test_features)
        mixed = () if final.layers is None else enumerate(final.layers.tolist())
        return {
            "accuracy": _accuracy(logits, test.labels),
            "cross_entropy": _cross_entropy(logits, test.labels),
            "train_accuracy": _accuracy(final.logits(features), train.labels),
            "holdout_accuracy": holdout_accuracy,
            "l2": l2,
            **{f"layer{number}_weight": weight for number, weight in mixed},
        }

    def held_out(self, train: Labelled) -> np.ndarray:
        """[N] bool: the examples of train that the penalty is chosen on."""
        return held_out(train.labels, self.holdout, np.random.default_rng(self.seed))

    def _choose(
        self,
        problem: LogisticRegression,
        features: np.ndarray,
        labels: np.ndarray,
        held: np.ndarray,
    ) -> tuple[float, Solution, float]:
        """The penalty with the best held-out accuracy (of equals the strongest)."""
        best: tuple[float, Solution, float] | None = None
        solution, worse, tried = None, 0, []
        for l2 in sorted(self.l2, reverse=True):
            solution = problem.fit(l2, (~held).astype(np.float32), start=solution)
            accuracy = _accuracy(solution.logits(features[held]), labels[held])
            tried.append(f"{l2:g}: {accuracy:.4f} ({solution.iterations} iterations)")
            if best is None or accuracy > best[2]:
                best, worse = (l2, solution, accuracy), 0
            else:
                worse += 1
            if worse == 2:
                break
        logger.info("%s: held-out accuracy by l2: %s", self.label, ", ".join(tried))
        return best


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    top = logits.max(1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
    return float((total - logits[np.arange(len(labels)), labels]).mean())
