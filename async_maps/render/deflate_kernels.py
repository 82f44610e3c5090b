"""The numba kernels that filter and compress scanlines: PNG filters, and Deflate with runs and Huffman codes.

They use integers only, so that the bytes of a PNG are the same on every CPU. The stream has one block with a dynamic
Huffman code (RFC 1951, section 3.2.7). Its only matches are runs of eight bytes or a multiple, at distance 1: for
filtered maps, further matches cost most of the time and save few bytes.

Scanlines are read as little-endian words of eight bytes, called groups. A group whose bytes all equal the last byte
of the group before is part of a run; all other groups are literals.

What only kernels call is compiled with them, and not loaded at each start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
from numba import types

from async_maps.render.kernel_compiler import kernel, readonly
from async_maps.render.scanlines import MARGIN, NONE, SYMBOLS, UP

if TYPE_CHECKING:
    from numpy.typing import NDArray

_END = 256
_LONGEST = 13
"""The most bits of a Huffman code: those of two literals fit an entry of a table."""
_LONGEST_RUN = 32
"""Groups: a match has at most 258 bytes."""
_CHUNK = 64
"""Groups that are counted together."""
_BITS = 26
"""An entry of a table of codes has its bits in the lowest 26, and their number above."""
_ONES = np.uint64(0x0101010101010101)

_U8 = types.Array(types.uint8, 1, "C")
_U64 = types.Array(types.uint64, 1, "C")
_I64 = types.Array(types.int64, 1, "C")
_SPAN = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]


def _run_symbols() -> NDArray[np.int64]:
    """Return the symbol, the extra bits and their number for a match of each number of groups, (33, 3)."""
    found = np.zeros((_LONGEST_RUN + 1, 3), np.int64)
    starts, extra = [], []
    length = 3
    for code in range(28):
        extra.append(max(0, code // 4 - 1))
        starts.append(length)
        length += 1 << extra[-1]
    for groups in range(1, _LONGEST_RUN + 1):
        code = max(code for code in range(28) if starts[code] <= 8 * groups)
        found[groups] = _END + 1 + code, 8 * groups - starts[code], extra[code]
    return found


_RUNS = _run_symbols()
_EXTRA = np.zeros(SYMBOLS, np.int64)
"""The bits after the code of each symbol: the extra bits of a length, and distance 1."""
_EXTRA[_RUNS[1:, 0]] = 1 + _RUNS[1:, 2]


@kernel(types.void(readonly(np.uint8), types.int64, _SPAN, types.int64, _U8))
def filter_rows(
    rows: NDArray[np.uint8], row_bytes: int, span: tuple[int, int], kind: int, lines: NDArray[np.uint8]
) -> None:
    """Write scanlines; the row above the first row of the image has zeros.

    Args:
        rows: (h * row_bytes,) the bytes of all rows.
        row_bytes: the bytes of a row.
        span: the first row to filter, and the row after the last.
        kind: NONE, UP, or for rows with one byte per pixel PAETH.
        lines: (n * (1 + row_bytes),) output: each filtered row, after the number of its filter.
    """
    # Unsigned, because numba looks up negative indices from the end, which vector instructions cannot.
    one, width = np.uint64(1), np.uint64(row_bytes)
    first, stop = span
    for y in range(first, stop):
        row, line = np.uint64(y * row_bytes), np.uint64((y - first) * (row_bytes + 1) + 1)
        above = row - width
        lines[line - one] = kind
        if kind == NONE or (kind == UP and y == 0):
            for x in range(width):
                lines[line + x] = rows[row + x]
        elif kind == UP:
            for x in range(width):
                lines[line + x] = np.uint8(rows[row + x] - rows[above + x])
        elif y == 0:
            lines[line] = rows[row]
            for x in range(one, width):
                lines[line + x] = np.uint8(rows[row + x] - rows[row + x - one])
        else:
            lines[line] = np.uint8(rows[row] - rows[above])
            for x in range(one, width):
                a, b, c = rows[row + x - one], rows[above + x], rows[above + x - one]
                # The predictor of the specification in 8 bits: with p = a + b - c, |p - a| = |b - c| and
                # |p - b| = |a - c|. c can only be the nearest between a and b; then |p - c| is their difference.
                to_a = np.uint8(max(b, c) - min(b, c))
                to_b = np.uint8(max(a, c) - min(a, c))
                least = min(to_a, to_b)
                is_between = (min(a, b) < c) & (c < max(a, b))
                is_nearest = np.uint8(max(to_a, to_b) - least) < least
                predicted = c if is_between & is_nearest else (a if to_a <= to_b else b)
                lines[line + x] = np.uint8(rows[row + x] - predicted)


@numba.njit(nogil=True, inline="always")
def _count_equal(words, at, end):  # type: ignore[no-untyped-def]
    """Return the number of groups, at most 32, that equal the one at ``at``, which counts."""
    count = np.uint64(1)
    while at + count < end and count < _LONGEST_RUN and words[at + count] == words[at]:
        count += np.uint64(1)
    return count


@kernel(types.void(_U64, types.int64, types.int64, types.int64, _I64))
def count_groups(words: NDArray[np.uint64], start: int, stop: int, step: int, counts: NDArray[np.int64]) -> None:
    """Count the symbols of chunks of 64 groups.

    Args:
        words: the groups.
        start: the first group.
        stop: the group after the last.
        step: the first of every ``step`` chunks is counted.
        counts: (570,) output, added to: two counts of 285 symbols, because neighbors are often equal, and an increment
            waits for the one before.
    """
    mask, second, one = np.uint64(255), np.uint64(SYMBOLS), np.uint64(1)
    for chunk in range(start, stop, step * _CHUNK):
        at, end = np.uint64(chunk), np.uint64(min(chunk + _CHUNK, stop))
        # Nothing is before the first group.
        repeated = ~words[at]
        while at < end:
            word = words[at]
            if word == repeated:
                run = _count_equal(words, at, end)
                counts[np.uint64(_RUNS[run, 0])] += 1
                at += run
            else:
                for i in range(0, 64, 16):
                    counts[word >> np.uint64(i) & mask] += 1
                    counts[second + (word >> np.uint64(i + 8) & mask)] += 1
                repeated = (word >> np.uint64(56)) * _ONES
                at += one


@kernel(types.void(readonly(np.uint8), types.int64, types.int64, _U8, _I64))
def sample(
    rows: NDArray[np.uint8], row_bytes: int, band: int, lines: NDArray[np.uint8], counts: NDArray[np.int64]
) -> None:
    """Filter two bands of rows with each filter, and count their symbols.

    Args:
        rows: (h * row_bytes,) the bytes of all rows.
        row_bytes: the bytes of a row.
        band: the rows of each band.
        lines: (filters, size) flattened output: the scanlines for the filters NONE, UP, PAETH; size is a multiple of
            8, and at least that of the scanlines.
        counts: (filters, 570) flattened output, added to.
    """
    filters = counts.size // (2 * SYMBOLS)
    rest, size, length = rows.size // row_bytes - band, lines.size // filters, band * (row_bytes + 1)
    for which in range(filters):
        part = lines[which * size : (which + 1) * size]
        for i in range(2):
            first = rest * (2 * i + 1) // 4
            filter_rows(rows, row_bytes, (first, first + band), 2 * which, part[i * length : (i + 1) * length])
        counted = counts[2 * which * SYMBOLS : 2 * (which + 1) * SYMBOLS]
        count_groups(part.view(np.uint64), 0, length // 4, 1, counted)


@numba.njit(nogil=True)
def sort(keys: NDArray[np.int64]) -> None:
    """Sort a few hundred keys, with less code to compile than NumPy's: Shellsort."""
    for gap in (121, 40, 13, 4, 1):
        for i in range(gap, keys.size):
            key, j = keys[i], i
            while j >= gap and keys[j - gap] > key:
                keys[j] = keys[j - gap]
                j -= gap
            keys[j] = key


@numba.njit(nogil=True)
def huffman(tree: NDArray[np.int64]) -> None:
    """Replace at least two weights, sorted in ascending order, by the lengths of their codes.

    Moffat and Katajainen, "In-Place Calculation of Minimum-Redundancy Codes" (1995): weights become parents, parents
    become depths of inner nodes, and these become the depths of the leaves.
    """
    size = tree.size
    tree[0] += tree[1]
    root, leaf = 0, 2
    for node in range(1, size - 1):
        total = 0
        for _ in range(2):
            if leaf >= size or (root < node and tree[root] < tree[leaf]):
                total += tree[root]
                tree[root] = node
                root += 1
            else:
                total += tree[leaf]
                leaf += 1
        tree[node] = total
    tree[size - 2] = 0
    for node in range(size - 3, -1, -1):
        tree[node] = tree[tree[node]] + 1
    free, depth, root, node = 1, 0, size - 2, size - 1
    while free > 0:
        used = 0
        while root >= 0 and tree[root] == depth:
            used += 1
            root -= 1
        for _ in range(free - used):
            tree[node] = depth
            node -= 1
        free, depth = 2 * used, depth + 1


@numba.njit(nogil=True)
def limit(lengths: NDArray[np.int64]) -> None:
    """Change the lengths of codes, the rarest first, to at most 13 bits, so that all codes fit (Kraft's inequality)."""
    whole, taken = 1 << _LONGEST, 0
    for i in range(lengths.size):
        lengths[i] = min(lengths[i], _LONGEST)
        taken += whole >> lengths[i]
    rarest = 0
    while taken > whole:
        while lengths[rarest] == _LONGEST:
            rarest += 1
        lengths[rarest] += 1
        taken -= whole >> lengths[rarest]
    # What is left goes to the most frequent.
    for i in range(lengths.size - 1, -1, -1):
        while taken + (whole >> lengths[i]) <= whole:
            taken += whole >> lengths[i]
            lengths[i] -= 1


@kernel(types.int64(_I64, types.int64, _I64))
def code_lengths(counts: NDArray[np.int64], least: int, lengths: NDArray[np.int64]) -> int:
    """Find the lengths of a Huffman code with at most 13 bits.

    Args:
        counts: (570,) how often each symbol occurs, in two parts.
        least: 1 if each symbol gets a code, also one that does not occur; else 0.
        lengths: (285,) output: the bits of each symbol's code.

    Returns:
        The bits of all symbols that occur.
    """
    keys, size = np.empty(SYMBOLS, np.int64), 0
    for symbol in range(SYMBOLS):
        lengths[symbol] = 0
        weight = 16 * (counts[symbol] + counts[symbol + SYMBOLS])
        # At least two symbols need a code. Lengths that are no multiple of eight never get one.
        if weight == 0 and (symbol in (0, _END) or (least and (symbol < _END or _EXTRA[symbol]))):
            weight = 1
        if weight:
            keys[size] = weight << 9 | symbol
            size += 1
    sort(keys[:size])
    found = keys[:size] >> 9
    huffman(found)
    limit(found)
    bits = 0
    for i in range(size):
        symbol = keys[i] & 511
        lengths[symbol] = found[i]
        bits += (keys[i] >> 13) * (found[i] + _EXTRA[symbol])
    return bits


@numba.njit(nogil=True, inline="always")
def _put(words, at, pending, used, code, length):  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917  # state that a tuple would slow down
    """Append the lowest bits of a code: ``used`` of the 64 bits that wait in ``pending`` are taken."""
    pending |= code << used
    words[at] = pending
    after = used + length
    is_full = after >> np.uint64(6)
    pending = code >> np.uint64(1) >> (np.uint64(63) - used) if is_full else pending
    return at + is_full, pending, after & np.uint64(63)


@numba.njit(nogil=True)
def assign_codes(lengths: NDArray[np.int64], codes: NDArray[np.uint32]) -> None:
    """Compute the codes from their lengths (RFC 1951, section 3.2.2), with the first bit lowest, as entries."""
    number, following = np.zeros(_LONGEST + 1, np.int64), np.zeros(_LONGEST + 1, np.int64)
    for symbol in range(SYMBOLS):
        number[lengths[symbol]] += 1
    number[0] = 0
    for length in range(1, _LONGEST + 1):
        following[length] = following[length - 1] + number[length - 1] << 1
    for symbol in range(SYMBOLS):
        length = lengths[symbol]
        code, turned = following[length], 0
        following[length] += 1
        for _ in range(length):
            turned = turned << 1 | (code & 1)
            code >>= 1
        codes[symbol] = np.uint32(turned | length << _BITS)


@numba.njit(nogil=True)
def join_codes(codes: NDArray[np.uint32], table: NDArray[np.uint32]) -> None:
    """Write an entry for each two literals into a table, (65536,): first + 256 * second is its index."""
    mask, shift = np.uint32((1 << _BITS) - 1), np.uint32(_BITS)
    for second in range(256):
        code, bits = codes[second] & mask, codes[second] >> shift
        part = table[second << 8 : (second + 1) << 8]
        for first in range(256):
            before = codes[first] >> shift
            part[first] = codes[first] & mask | np.uint32(code << before) | np.uint32(np.uint32(before + bits) << shift)


@numba.njit(nogil=True)
def describe(lengths: NDArray[np.int64], header: NDArray[np.uint64]) -> int:
    """Write what precedes the symbols: the headers of zlib (RFC 1950) and of the block, and the lengths of the codes.

    Args:
        lengths: (285,) the bits of each symbol's code.
        header: (309, 2) output: codes, and their numbers of bits.

    Returns:
        The number of codes.
    """
    header[0, 0], header[0, 1] = 0x0178, 16
    # The last block, with a dynamic code: numbers of symbols, of distances, and of lengths of codes for lengths.
    header[1, 0], header[1, 1] = 1 | 2 << 1 | (SYMBOLS - 257) << 3 | (2 - 1) << 8 | (18 - 4) << 13, 17
    size = 2
    # The code for lengths has 4 bits for 0 to 13, 16 (repeat the last length) and 17, so that it is complete.
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1):
        header[size, 0], header[size, 1] = 0 if symbol == 14 or symbol == 18 else 4, 3  # noqa: PLR1714  # numba
        size += 1
    symbol = 0
    while symbol < SYMBOLS + 2:
        # After the symbols come two distances with a bit each.
        length = lengths[symbol] if symbol < SYMBOLS else 1
        same = 1
        while same < 7 and symbol + same < SYMBOLS and lengths[symbol + same] == length:
            same += 1
        header[size, 0] = (length & 1) << 3 | (length & 2) << 1 | (length & 4) >> 1 | (length & 8) >> 3
        header[size, 1] = 4
        size += 1
        if same > 3:
            # Symbol 16 has the code 14, and two extra bits.
            header[size, 0], header[size, 1] = 7 | (same - 4) << 4, 6
            size += 1
        symbol += same if same > 3 else 1
    return size


@kernel(types.int64(_U8, _U64, types.int64, _I64))
def deflate(room: NDArray[np.uint8], words: NDArray[np.uint64], size: int, lengths: NDArray[np.int64]) -> int:
    """Compress scanlines where they are: the zlib stream starts at the start of the room, without its checksum.

    Args:
        room: (MARGIN + size,) or more; the scanlines start at MARGIN. They are overwritten.
        words: the same memory, without what is not a whole word.
        size: the bytes of the scanlines.
        lengths: (285,) the bits of each symbol's code.

    Returns:
        The bytes of the stream, which has room for 8 more; 0 if it would overtake the scanlines.
    """
    margin, groups = MARGIN // 8, size // 8
    codes, table = np.empty(SYMBOLS, np.uint32), np.empty(65536, np.uint32)
    assign_codes(lengths, codes)
    join_codes(codes, table)
    mask, shift = np.uint64((1 << _BITS) - 1), np.uint64(_BITS)
    runs = np.zeros(_LONGEST_RUN + 1, np.uint64)
    for run in range(1, _LONGEST_RUN + 1):
        symbol, extra = _RUNS[run, 0], _RUNS[run, 1]
        length = lengths[symbol]
        # After the extra bits, distance 1 is one bit, 0.
        code = np.int64(codes[symbol] & np.uint32(mask)) | extra << length
        runs[run] = np.uint64(code | length + _EXTRA[symbol] << _BITS)

    at, pending, used = np.uint64(0), np.uint64(0), np.uint64(0)
    header = np.empty((SYMBOLS + 24, 2), np.uint64)
    for i in range(describe(lengths, header)):
        at, pending, used = _put(words, at, pending, used, header[i, 0], header[i, 1])
    one, four, pair = np.uint64(1), np.uint64(4), np.uint64(0xFFFF)
    group, end, repeated = np.uint64(margin), np.uint64(margin + groups), ~words[margin]
    while group < end:
        word = words[group]
        if word == repeated:
            same = _count_equal(words, group, end)
            group += same
            at, pending, used = _put(words, at, pending, used, runs[same] & mask, runs[same] >> shift)
        else:
            group += one
            if at + four > group:
                return 0
            repeated = (word >> np.uint64(56)) * _ONES
            # Not a loop, which is not unrolled.
            first, second = np.uint64(table[word & pair]), np.uint64(table[word >> np.uint64(16) & pair])
            bits = first >> shift
            code = first & mask | (second & mask) << bits
            at, pending, used = _put(words, at, pending, used, code, bits + (second >> shift))
            first, second = np.uint64(table[word >> np.uint64(32) & pair]), np.uint64(table[word >> np.uint64(48)])
            bits = first >> shift
            code = first & mask | (second & mask) << bits
            at, pending, used = _put(words, at, pending, used, code, bits + (second >> shift))
    if at + four > end:
        return 0
    for i in range(MARGIN + 8 * groups, MARGIN + size + 1):
        entry = np.uint64(codes[room[i] if i < MARGIN + size else _END])
        at, pending, used = _put(words, at, pending, used, entry & mask, entry >> shift)
    words[at] = pending
    return int(np.int64(at) * 8 + (np.int64(used) + 7) // 8)
