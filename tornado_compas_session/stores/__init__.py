"""The stores: `MemorySessionStore` and `PostgresSessionStore`."""
