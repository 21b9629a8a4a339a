"""The load generator: one process, HTTP/1.1 and SSE on bare protocols, as little CPU as Python can take.

It shares its cores with what it measures, so a read of a stream costs a timestamp and a look at its last bytes;
text is looked for until the first of it has come, and tokens are counted by what the server says at the end.
"""
