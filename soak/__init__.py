"""`make soak`: a steady load on `make up`, and nothing else, to find what grows."""
