"""Files: the input and the results of batches."""
