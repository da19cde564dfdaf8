"""What every part of the server speaks of: errors, signatures, examples."""
