"""The Responses dialect: stored, chained and resumable responses, as in OpenAI's API."""
