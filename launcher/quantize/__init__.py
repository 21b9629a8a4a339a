"""Quantize a model's checkpoint to 4 or 8 bits: `python -m launcher.quantize MODEL --output FOLDER`."""
