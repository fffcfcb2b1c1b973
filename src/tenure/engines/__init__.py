"""What tenure adds around an ``Engine``. Knows nothing of units."""
