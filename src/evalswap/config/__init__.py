"""From a config file or command-line options to typed specs."""
