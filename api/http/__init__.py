"""HTTP, independent of the API dialects: errors, JSON bodies, SSE, headers, middleware."""
