"""Web requests: one boundary that decides, and a short file per framework that says where things live."""
