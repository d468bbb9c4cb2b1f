"""What is asked, and when; pure and seeded."""
