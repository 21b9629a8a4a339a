"""Pages for people: the landing page and the API reference."""
