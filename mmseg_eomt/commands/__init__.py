"""One file a tool, with `main(argv)`; nothing heavy is imported before the arguments are read."""
