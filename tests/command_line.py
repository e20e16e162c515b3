"""The program run in this process, as tests of its commands do."""

from click.testing import CliRunner

from mlxchat.cli.main import cli


class CommandLine:
    """Runs the program and keeps what it said on stderr.

    Args:
        words: Stand before the arguments of each call, such as `bench`.
    """

    def __init__(self, *words):
        self._words, self.stderr = words, ""

    def __call__(self, *arguments, text="", code=0):
        """Returns what is on stdout; fails where the exit code is another one."""
        result = CliRunner().invoke(cli, [*self._words, *map(str, arguments)], input=text)
        assert result.exit_code == code, result.stderr
        self.stderr = result.stderr
        return result.stdout
