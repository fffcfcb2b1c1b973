"""The shop on WSGI, without a framework."""
