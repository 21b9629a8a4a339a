"""The request log: levels, encrypted bodies, partitions and retention."""
