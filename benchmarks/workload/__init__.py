"""What is requested, and when. Pure and seeded."""
