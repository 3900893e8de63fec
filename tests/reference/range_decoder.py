"""Decodes indices of ``speech.net.indexcoder`` with one long number in place of bytes in turn."""


def decode(data: bytes, count: int, num_values: int) -> list[int]:
    """Returns the indices; all of the data must have been needed for them."""
    value = int.from_bytes(data, "big")
    shift = 8 * (len(data) - 4)  # what follows behind the 32 bits that the range has
    low, span = 0, 2**32 - 1
    counts = [1] * num_values
    found = []
    for _ in range(count):
        part = span // sum(counts)
        starts = [low + (part * sum(counts[:i]) << shift) for i in range(num_values)]
        index = max(i for i in range(num_values) if starts[i] <= value)
        low, span = starts[index], part * counts[index]
        while span < 2**24:
            span *= 256
            shift -= 8
        assert low <= value < low + (span << max(shift, 0))
        counts[index] += 2
        if sum(counts) > 2**15:
            counts = [n - n // 2 for n in counts]
        found.append(index)
    assert shift == 0
    return found
