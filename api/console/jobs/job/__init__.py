"""The page of one job: where its time went, its answer, its request, and why a model served it."""
