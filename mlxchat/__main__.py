"""`python -m mlxchat` is the `mlxchat` command, and the console script starts here too.

Nothing is imported before Ctrl-C is looked out for.
"""


def run() -> None:
    """Runs the program; Ctrl-C during its imports ends it without a traceback."""
    try:
        from mlxchat.cli.main import main

        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    run()
