"""`python -m workers MODEL`: runs `workers.main` as the main module.

A spawned process imports its parent's main module again, unless that is called `__main__`. `workers.main` sets up
such processes.
"""

import runpy

runpy.run_module("workers.main", run_name="__main__", alter_sys=True)
