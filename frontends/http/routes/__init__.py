"""The handlers of the HTTP routes: each reads a body, makes one call and writes the response."""
