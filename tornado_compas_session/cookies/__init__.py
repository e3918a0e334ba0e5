"""The browser's side: cookies as text, and their signatures."""
