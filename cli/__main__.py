"""`python -m cli`: the same as `headrace`."""

from cli.app import main

main()
