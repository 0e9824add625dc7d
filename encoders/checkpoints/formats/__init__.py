"""Weights of other projects, in and out: Hugging Face transformers (`hf`) and timm (`timm`).

Each format is a module with `read(directory) -> Imported` and `write(directory, Exported)`. Nothing
here imports those projects, or torch.
"""
