"""Words in, words out: commands, the REPL, and the only writer to the terminal."""
