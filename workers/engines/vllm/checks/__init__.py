"""Checks a model's options before the engine loads its weights.

Each module has the rules of one subject. They ask the installed vLLM, so that what a new version can do is allowed
without a change here, and what it cannot is refused with a message that names the option, the cause and what can be
used instead. Without these checks, vLLM fails after it has loaded the model, or continues without the option.
"""
