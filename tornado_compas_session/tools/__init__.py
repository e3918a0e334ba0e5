"""What people run; no request needs it."""
