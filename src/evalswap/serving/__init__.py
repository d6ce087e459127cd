"""Engine processes: where engines are installed, and starting, watching and stopping their servers."""
