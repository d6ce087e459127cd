"""The commands, one file each: ``add`` declares its arguments, and its function does one thing with them."""
