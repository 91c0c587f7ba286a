"""The command line: one module for each command. Each declares its options and runs."""
