"""Quantize a model's checkpoint to 4 bits: `python -m launcher.quantize MODEL --output FOLDER`."""
