"""From the body of a route to its whole answer, without HTTP: for the HTTP server and for batches."""
