"""`python -m mlxchat` is the `mlxchat` command."""

from mlxchat.cli.main import main

main()
