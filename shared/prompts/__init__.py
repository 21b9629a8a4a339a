"""Prompts as models see them: chat templates and numbers of tokens."""
