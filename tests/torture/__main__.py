"""``python -m tests.torture --minutes 30 --seed 7 --drivers psycopg,asyncpg``: the torture test for as long as one likes.

It is made of rounds, each on one of the drivers in turn, with a line of progress every two seconds and a table at the end. A find
names the seed of its round; ``--rounds 1 --drivers X --seed SEED`` rolls the same dice again.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]  # as pytest has it

if __name__ == "__main__":
    from torture.soak import main

    sys.exit(main())
