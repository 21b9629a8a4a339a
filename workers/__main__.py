"""`python -m workers MODEL`: runs `workers.main` as the main module.

A spawned process imports its parent's main module again, but never one called `__main__`; and `workers.main`
has something to say there.
"""

import runpy

runpy.run_module("workers.main", run_name="__main__", alter_sys=True)
