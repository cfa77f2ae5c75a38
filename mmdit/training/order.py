"""The shuffled order of an epoch, as a function: it takes no list of its length.

A Feistel network over pairs of digits shuffles the numbers below side^2, the least square that holds all; cycle walking
applies it again while it leads out of range, which leaves a permutation of the numbers asked for.
Source: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002, methods "generalized Feistel" and
"cycle walking"; the round function is the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import math
from collections.abc import Iterator

from mmdit.seeds import seed_at

_ROUNDS = 8
_64 = (1 << 64) - 1


class EpochOrder:
    """A permutation of [0, count), a function of (seed, epoch): `order[place]` is the number at that place.

    It is made in constant time and memory. Shuffled well enough for the order of training, and no cipher.

    Args:
        count: how many there are, 1 or more.
    """

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        if count < 1:
            raise ValueError(f"an order of {count} numbers; expected 1 or more")
        self.count = count
        self._side = math.isqrt(count - 1) + 1
        self._keys = [seed_at(seed, "order", epoch, number) for number in range(_ROUNDS)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        if not 0 <= place < self.count:
            raise IndexError(f"place {place} of {self.count}")
        number = self._shuffled(place)
        while number >= self.count:  # fewer than 1 + 2 / sqrt(count) rounds on average
            number = self._shuffled(number)
        return number

    def __iter__(self) -> Iterator[int]:
        return (self[place] for place in range(self.count))

    def _shuffled(self, number: int) -> int:
        """A permutation of [0, side^2): each round is undone by taking away what it added."""
        left, right = divmod(number, self._side)
        for key in self._keys:
            left, right = right, (left + _mixed(right ^ key)) % self._side
        return left * self._side + right


def _mixed(x: int) -> int:
    """64 bits, each of which depends on every bit of `x`."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64
    return x ^ (x >> 31)
