"""The Anthropic-compatible face: the same jobs, in the shapes of Anthropic's Messages API."""
