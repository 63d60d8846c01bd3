"""Developer's scripts: timings and comparisons whose results stand in README.md."""
