"""Plain data to pictures. Knows no run folder."""
