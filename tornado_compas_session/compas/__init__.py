"""The application that Compas makes: `get_app`, CORS, errors with a key."""
