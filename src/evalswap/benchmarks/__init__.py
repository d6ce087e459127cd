"""One file per benchmark: its rows, its post-processors, its evaluator."""
