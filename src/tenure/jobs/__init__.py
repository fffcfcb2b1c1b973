"""Work outside requests: a short file per runner."""
