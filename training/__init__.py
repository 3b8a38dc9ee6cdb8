"""One run: settings, command line, folder, checkpoints, sweeps."""
