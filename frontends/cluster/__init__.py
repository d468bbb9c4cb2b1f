"""Many engines behind one address, on Ray Serve: an ingress that outlives them, a manager per replica, and what they know of each other."""
