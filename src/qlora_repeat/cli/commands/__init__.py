"""One module for each subcommand; each defines `command`."""
