"""An engine without a model, for tests and for trying the platform."""
