"""Several engines behind one address on Ray Serve: ingresses, replicas and their shared state."""
