"""Files: what batches read and what they leave."""
