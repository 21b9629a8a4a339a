"""`make up`: one command that starts Headrace with its database, its queue and its engines."""
