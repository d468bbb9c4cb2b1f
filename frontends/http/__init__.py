"""What stands between a network that nobody trusts and the routes: connections, the form of requests, who asks, what is logged."""
