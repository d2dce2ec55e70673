"""Which combinations of classes the language model is asked about."""

import random
from collections import deque
from collections.abc import Iterator
from itertools import islice
from math import comb

SIZES = (2, 3)


def sample_combinations(
    num_classes: int, num_combinations: int, seed: int
) -> list[tuple[int, ...]]:
    """Draw distinct pairs and triples in which every class appears about equally often.

    The classes stand in a queue of shuffled passes, each of which holds every class once. A
    combination takes the front class and, from the front on, the next ones that make it new; what
    it passes over stays in front for the next. So after each draw the counts of two classes differ
    by one, or by two where a repeated combination was passed over.

    Args:
        num_classes: C, at least 2.
        num_combinations: How many are wanted. Fewer come back where no more are possible.
        seed: Same seed, same combinations.

    Returns:
        Sorted class indices, pairs and triples in turn (pairs only for C = 2).

    Raises:
        ValueError: Fewer than two classes or fewer than one combination.
    """
    if num_classes < 2 or num_combinations < 1:
        raise ValueError(
            f"num_classes is {num_classes} and num_combinations {num_combinations}; "
            "expected at least 2 and 1."
        )
    draw = random.Random(seed)
    sizes = [size for size in SIZES if size <= num_classes]
    wanted = min(num_combinations, sum(comb(num_classes, size) for size in sizes))
    queue: deque[int] = deque()
    seen: set[tuple[int, ...]] = set()
    drawn: list[tuple[int, ...]] = []
    while len(drawn) < wanted:
        if len(queue) < 2 * num_classes:
            queue.extend(draw.sample(range(num_classes), num_classes))
        turn = len(drawn) % len(sizes)
        new = next(_new_ones(queue, sizes[turn:] + sizes[:turn], seen), None)
        if new is None:
            # The front class has met all others: it has its full share, so it leaves the queue.
            queue.popleft()
            continue
        for index in new:
            queue.remove(index)
        seen.add(tuple(sorted(new)))
        drawn.append(tuple(sorted(new)))
    return drawn


def class_counts(combinations: list[tuple[int, ...]], num_classes: int) -> list[int]:
    """In how many combinations each class appears, C counts."""
    counts = [0] * num_classes
    for combination in combinations:
        for index in combination:
            counts[index] += 1
    return counts


def _new_ones(
    queue: deque[int], sizes: list[int], seen: set[tuple[int, ...]]
) -> Iterator[tuple[int, ...]]:
    """Combinations of the front class that were not drawn, those nearest to the front first."""
    front = queue[0]
    for size in sizes:
        for position, second in enumerate(islice(queue, 1, None), start=2):
            if second == front:
                continue
            # Only as far as needed: with 20,000 classes the queue is long.
            thirds = islice(queue, position, None) if size == 3 else (second,)
            for third in thirds:
                combination = tuple(sorted({front, second, third}))
                if len(combination) == size and combination not in seen:
                    yield combination
