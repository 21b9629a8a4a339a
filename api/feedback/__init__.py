"""What people think of answers: values of metrics, by clients with keys and by browsers with an answer's token."""
