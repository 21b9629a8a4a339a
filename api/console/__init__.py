"""The web console at `/console`: server-rendered pages for operators and for the owners of jobs.

A page is a folder here, with `routes.py`, its templates, and one line in `api.console.pages`.
"""
