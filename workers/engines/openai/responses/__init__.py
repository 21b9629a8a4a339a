"""OpenAI's Responses API: a response that runs in the background, whose stream can be resumed."""
