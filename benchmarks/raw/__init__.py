"""vLLM's engine without a server: `LLM.chat` with all requests of a round at once."""
