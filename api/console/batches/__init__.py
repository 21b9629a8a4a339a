"""Batches and files: upload, watch the counts move, download the results."""
