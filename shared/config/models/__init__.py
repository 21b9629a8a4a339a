"""The models declared in models.yaml, with one spec module per engine."""
