"""`headrace`: the command line, for the installation on this machine or a remote one (docs/cli.md).

Remote commands need httpx, typer and rich only. httpx and rich are imported where they are first used, because help
and shell completion must not wait for them.
"""
