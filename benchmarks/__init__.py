"""What koo costs, beside its peers, in one run: `make bench`, or `python -m benchmarks guard database …`."""
