"""OpenAI's Responses API: the same jobs, as responses that are kept, chained and resumed."""
