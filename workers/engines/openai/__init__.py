"""Relays jobs to a server that speaks the OpenAI API."""
