"""Requests and streams of OpenAI's Chat Completions, for each engine whose upstream has them."""
