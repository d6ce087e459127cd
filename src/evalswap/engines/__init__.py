"""One file per engine: how it is launched, how it is asked, what it calls the sampling fields."""
