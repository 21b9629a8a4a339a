"""The engines behind one small protocol (`workers.engines.base`)."""
