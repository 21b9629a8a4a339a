"""Trains the classifier of refusals (`shared.domain.refusals`), and measures it on answers that it has not seen."""
