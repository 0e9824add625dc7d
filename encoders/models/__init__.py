"""Networks, one file per family; a config picks one by `model.name`."""

from encoders.models.vit import ViT

MODELS = {"vit": ViT}
