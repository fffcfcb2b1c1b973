"""Small applications that run on tenure, and the load that proves them."""
