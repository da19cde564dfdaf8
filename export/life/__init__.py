"""The life of a version after it was published: verified, compared, moved, signed, promoted, removed."""
