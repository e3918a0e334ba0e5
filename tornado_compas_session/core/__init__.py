"""What a session is: no Tornado, no SQL; the seams in words."""
