"""``python child.py FILE SEED``: workers on a SQLite file that tell each step on standard output, until somebody ends the process."""

import logging
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

if __name__ == "__main__":
    import sqlalchemy as sa

    from torture.round import Round

    logging.getLogger("tenure").setLevel(logging.CRITICAL + 1)
    made = Round("sqlite", sys.argv[2], 60.0, url=sa.URL.create("sqlite", database=sys.argv[1]))
    # One write for each line: the end of the process cannot cut it in two.
    made.book.tell(lambda what, key: os.write(1, f"{what}\t{key}\n".encode()))
    made.run()
