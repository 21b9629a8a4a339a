"""The context of a prompt: its length in tokens, limits, and conversations that outgrow it."""
