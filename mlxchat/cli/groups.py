"""Groups of commands: listed in their own order with whole summaries, wrong names refused."""

import click


class Group(click.Group):
    """A group whose --help cuts nothing off."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order in which the commands were made."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes each command with its summary, on more lines where it needs them."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        limit = 10_000  # Click would end a summary with `...` where the line ends
        rows = [(name, entry.get_short_help_str(limit)) for name, entry in found if entry]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command that `args` name, or says which there are."""
        known = self.list_commands(ctx)
        if args[0] not in known:
            if " " in args[0] and ctx.parent is None:
                ctx.fail(
                    f"there is no command {args[0]!r}; `mlxchat generate TEXT` answers one prompt"
                )
            name, above = args[0], ctx
            while above.parent is not None:  # the program itself goes by many names
                name, above = f"{above.info_name} {name}", above.parent
            ctx.fail(f"there is no command '{name}'; commands are {', '.join(known)}")
        return super().resolve_command(ctx, args)
