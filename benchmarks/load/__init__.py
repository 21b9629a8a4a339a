"""The load generator: one process, HTTP/1.1 and SSE on plain asyncio protocols, with minimal CPU use.

It shares the cores with the system under test, so each read of a stream only takes a timestamp and checks the last
bytes. Text is parsed only until the first token; tokens are counted from the usage that the server reports.
"""
