"""Configuration: settings from the environment and the models of models.yaml."""
