"""The cost of koo compared with its peers, in one run: `make bench`, or `python -m benchmarks guard database …`."""
