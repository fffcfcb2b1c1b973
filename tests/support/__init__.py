"""What the tests stand on: real servers, one body of cases for both faces, models, and the leak check."""
