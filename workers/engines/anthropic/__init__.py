"""Relays jobs to a server with Anthropic's Messages API."""
