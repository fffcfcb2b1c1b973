"""What a unit of work is. Knows no thread pool, loop or framework."""
