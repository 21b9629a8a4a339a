"""HTTP without any dialect: errors, JSON bodies, SSE, headers, middleware."""
