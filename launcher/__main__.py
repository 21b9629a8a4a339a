"""`python -m launcher`."""

import sys

from launcher.up import main

sys.exit(main())
