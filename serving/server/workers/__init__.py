"""More processes behind the same ports."""
