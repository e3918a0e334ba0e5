"""What a session costs: `make bench`, and `python -m benchmarks.scale`."""
