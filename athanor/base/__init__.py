"""What every room stands on: errors, atomic files, downloads, the machine, randomness, statistics, progress, runs."""
