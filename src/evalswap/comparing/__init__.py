"""Is it still the same score? Two or more runs, row by row: contract, statistics, differences, verdict."""
