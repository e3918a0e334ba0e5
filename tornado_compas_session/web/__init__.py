"""What Tornado sees: the mixin, the held response, the wiring."""
