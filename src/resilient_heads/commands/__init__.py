"""What the command line can do, one module a command: each declares its arguments and calls the library."""
