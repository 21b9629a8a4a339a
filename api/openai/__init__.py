"""The OpenAI-compatible face: the same jobs, in the shapes of OpenAI's API."""
