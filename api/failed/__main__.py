"""Runs `api.jobs.dead_letters`."""

import sys

from api.jobs.dead_letters import main

sys.exit(main())
