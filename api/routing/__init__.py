"""Routes: names that stand for several models, of which rules choose one per request."""
