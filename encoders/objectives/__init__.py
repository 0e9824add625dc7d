"""What encoders are trained on, one file per idea; a config picks one by `objective.name`."""

from encoders.objectives.classification import Classification
from encoders.objectives.masked_image import MaskedImage

OBJECTIVES = {"classification": Classification, "masked_image": MaskedImage}
