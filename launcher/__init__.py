"""`make up`: starts Headrace with its database, queue and engines in one command."""
