"""The models of `models.yaml`: one file for each engine."""
